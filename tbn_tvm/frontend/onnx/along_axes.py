"""Operators along one axis, or two: running products, norms, diagonals."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, topi
from tvm import tirx as tir
from tvm.relax.frontend.onnx.onnx_frontend import LayerNormalization

from tbn_tvm.frontend.onnx.graph import dtype_name
from tbn_tvm.frontend.onnx.operands import axis_of, cast, exact


def _cum_prod(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Products of what comes before, with the element itself or without it."""
    x, axis = inputs
    dtype = x.ty.dtype.dtype
    axis = axis_of(int(axis.value.numpy().reshape(-1)[0]), len(x.ty.shape.values))
    x = exact(bb.emit, x)
    backwards = bool(attrs.get("reverse", 0))
    if backwards:
        x = bb.emit_te(topi.flip, x, axis=axis)
    x = bb.emit(relax.op.cumprod(x, axis, exclusive=bool(attrs.get("exclusive", 0))))
    if backwards:
        x = bb.emit_te(topi.flip, x, axis=axis)
    return relax.op.astype(x, dtype)


def _lp_normalization(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Over the norm along an axis; zeros where that is zero."""
    x, emit = inputs[0], bb.emit
    p, axis = attrs.get("p", 2), axis_of(attrs.get("axis", -1), len(x.ty.shape.values))
    if p not in (1, 2):
        raise ValueError(f"p {p}: expected 1 or 2")
    dtype = x.ty.dtype.dtype
    value = exact(emit, x)
    zero = relax.const(0, value.ty.dtype.dtype)
    size = emit(relax.op.abs(value) if p == 1 else relax.op.multiply(value, value))
    norm = emit(relax.op.sum(size, axis, keepdims=True))
    norm = norm if p == 1 else emit(relax.op.sqrt(norm))
    nothing = emit(relax.op.equal(norm, zero))
    unit = emit(relax.op.where(nothing, zero, emit(relax.op.divide(value, norm))))
    return relax.op.astype(unit, dtype)


def _layer_normalization(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """TVM's converter, and the means and deviations where the model asks for them."""
    made = LayerNormalization.get_converter(opset)(bb, inputs, attrs, ({}, {}))
    if attrs["tvm_custom"]["num_outputs"] == 1:
        return made
    if attrs.get("stash_type", 1) != 1:
        raise ValueError(f"means of stash_type {attrs['stash_type']}: expected 1")
    x, emit = inputs[0], bb.emit
    rank = len(x.ty.shape.values)
    axes = list(range(axis_of(attrs.get("axis", -1), rank), rank))
    x = exact(emit, x)
    mean = emit(relax.op.mean(x, axes, keepdims=True))
    centred = emit(relax.op.subtract(x, mean))
    square = emit(relax.op.multiply(centred, centred))
    variance = emit(relax.op.mean(square, axes, keepdims=True))
    epsilon = relax.const(attrs.get("epsilon", 1e-5), x.ty.dtype.dtype)
    inverse = emit(relax.op.rsqrt(emit(relax.op.add(variance, epsilon))))
    return relax.Tuple([made[0], cast(emit, mean, "float32"), cast(emit, inverse, "float32")])


def _eye_like(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Ones on a diagonal, of the type that is asked for."""
    x = inputs[0]
    rows, columns = x.ty.shape.values
    dtype = dtype_name(attrs["dtype"]) if "dtype" in attrs else x.ty.dtype.dtype
    offset = attrs.get("k", 0)

    def eye(like: te.Tensor) -> te.Tensor:
        return te.compute(
            like.shape, lambda i, j: (j - i == tir.const(offset, "int64")).astype(dtype), "eye"
        )

    fixed = isinstance(rows, tir.IntImm) and isinstance(columns, tir.IntImm)
    if fixed and int(rows) * int(columns) <= _MAX_STORED:
        return relax.const(np.eye(int(rows), int(columns), offset).astype(dtype), dtype)
    return bb.emit_te(eye, x, primfunc_name_hint="eye_like")


_MAX_STORED = 2**20
"""Elements of a constant that is made where the model has none: an input may claim any size."""


ALONG_AXES = {
    "CumProd": _cum_prod,
    "EyeLike": _eye_like,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
}
"""Converters."""
