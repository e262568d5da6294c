"""Sums: TVM's converters add up 16-bit floats as such, which stop growing or overflow."""

from __future__ import annotations

from functools import partial

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from tbn_tvm.frontend.onnx.operands import HALVES, exact


def _summed(kind: str, bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """By TVM's converter, of 16-bit floats in float32."""
    convert = onnx_frontend._get_convert_map()[kind].get_converter(opset)
    dtype = inputs[0].ty.dtype.dtype
    if dtype not in HALVES:
        return convert(bb, inputs, attrs, ({}, {}))
    inputs = onnx_frontend.onnx_input([exact(bb.emit, inputs[0]), *inputs[1:]])
    made = bb.normalize(convert(bb, inputs, attrs, ({}, {})))
    return relax.op.astype(made, dtype)


_KINDS = """
    AveragePool CumSum GlobalAveragePool LogSoftmax ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMean ReduceSum ReduceSumSquare Softmax
"""

SUMMING = {kind: partial(_summed, kind) for kind in _KINDS.split()}
"""Converters."""
