"""Indices that stay inside the tensors they read or write, which TVM's kernels do not check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.relax.frontend.onnx import onnx_frontend


def _along_axis(data: relax.Expr, _indices: relax.Expr, attrs: dict) -> list:
    return [data.ty.shape.values[attrs.get("axis", 0)]]


def _coordinates(data: relax.Expr, indices: relax.Expr, attrs: dict) -> list:
    first, count = attrs.get("batch_dims", 0), int(indices.ty.shape.values[-1])
    return list(data.ty.shape.values[first : first + count])


def _inside(indices: relax.Expr, extents: list) -> relax.Expr:
    """Constant indices from the front, or others clipped; along the last axis where several."""
    if not all(isinstance(extent, tir.IntImm) for extent in extents):
        raise ValueError("indices along an axis of free size: export it with that axis fixed")
    dtype = indices.ty.dtype.dtype
    sizes = np.array([int(extent) for extent in extents], dtype)
    if isinstance(indices, tvm.ir.GenericConst):
        values = indices.value.numpy()
        wrong = (values < -sizes) | (values >= sizes)
        if wrong.any():
            raise ValueError(f"index {values[wrong][0]} along an axis of {sizes.tolist()}")
        return relax.const(np.where(values < 0, values + sizes, values), dtype)
    at_least = relax.op.maximum(indices, relax.const(-sizes, dtype))
    return relax.op.minimum(at_least, relax.const(sizes - 1, dtype))


def _converter(name: str, extents: Callable) -> Callable:
    """TVM's converter, given indices inside."""
    theirs = getattr(onnx_frontend, name)

    def convert(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
        data, indices, *rest = inputs
        inside = bb.normalize(_inside(indices, extents(data, indices, attrs)))
        return theirs.get_converter(opset)(bb, [data, inside, *rest], attrs, {})

    return convert


INDEXING = {
    "GatherElements": _converter("GatherElements", _along_axis),
    "GatherND": _converter("GatherND", _coordinates),
    "ScatterElements": _converter("ScatterElements", _along_axis),
    "ScatterND": _converter("ScatterND", _coordinates),
}
"""Converters. An index that only data knows is clipped; a constant one outside is refused."""
