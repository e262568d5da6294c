"""Converters of ONNX operators that TVM's importer gets wrong, or makes what we do not recognise.

A converter takes the block builder, the inputs (None for one left out, of which there may be fewer
than the operator has), attributes as Python values (strings as bytes) and the opset.
"""

from __future__ import annotations

from tvm import relax


def _gemm(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """``alpha * A @ B + beta * C``; TVM's converter scales A, which hides it from what fuses."""
    a, b, c = inputs[0], inputs[1], inputs[2]
    like = a
    if attrs.get("transA", 0):
        a = relax.op.permute_dims(a)
    if attrs.get("transB", 0):
        b = relax.op.permute_dims(b)
    result = _scaled(relax.op.matmul(a, b), attrs.get("alpha", 1.0), like)
    return result if c is None else relax.op.add(result, _scaled(c, attrs.get("beta", 1.0), like))


def _scaled(value: relax.Expr, factor: float, like: relax.Expr) -> relax.Expr:
    if factor == 1.0:
        return value
    return relax.op.multiply(value, relax.const(factor, like.ty.dtype.dtype))


CONVERTERS = {"Gemm": _gemm}
