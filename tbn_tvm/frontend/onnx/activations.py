"""Activations, in every type of float; some of TVM's converters know float32 alone."""

from __future__ import annotations

from tvm import relax

from tbn_tvm.frontend.onnx.operands import exact


def _elu(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    return _bent(bb, inputs[0], attrs.get("alpha", 1.0))


def _celu(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    alpha = attrs.get("alpha", 1.0)
    if not alpha:
        raise ValueError("alpha 0: expected another, which it divides by")
    return _bent(bb, inputs[0], alpha, inner=1 / alpha)


_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _selu(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    alpha, gamma = attrs.get("alpha", _SELU_ALPHA), attrs.get("gamma", _SELU_GAMMA)
    return _bent(bb, inputs[0], alpha, outer=gamma)


def _bent(bb, x, alpha: float, inner: float = 1.0, outer: float = 1.0) -> relax.Expr:
    """``outer * alpha * (exp(inner * x) - 1)`` below zero, and ``outer * x`` elsewhere."""
    value = exact(bb.emit, x)
    zero, one = (_like(value, number) for number in (0, 1))
    # What is not taken does not overflow; what is no number stays none.
    below = bb.emit(relax.op.multiply(bb.emit(relax.op.minimum(value, zero)), _like(value, inner)))
    below = bb.emit(relax.op.subtract(bb.emit(relax.op.exp(below)), one))
    below = bb.emit(relax.op.multiply(below, _like(value, alpha)))
    result = bb.emit(relax.op.where(bb.emit(relax.op.less(value, zero)), below, value))
    if outer != 1:
        result = bb.emit(relax.op.multiply(result, _like(value, outer)))
    return relax.op.astype(result, x.ty.dtype.dtype)


def _swish(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    x = inputs[0]
    return relax.op.astype(_gate(bb.emit, x, attrs.get("alpha", 1.0)), x.ty.dtype.dtype)


def _swiglu(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """The first input gates the second; nothing is broadcast."""
    gate, x = inputs
    gated = bb.emit(_gate(bb.emit, gate, attrs.get("alpha", 1.0)))
    return relax.op.astype(relax.op.multiply(gated, exact(bb.emit, x)), x.ty.dtype.dtype)


def _gate(emit, x: relax.Expr, alpha: float) -> relax.Expr:
    value = exact(emit, x)
    slope = value if alpha == 1 else emit(relax.op.multiply(value, _like(value, alpha)))
    return relax.op.multiply(value, emit(relax.op.sigmoid(slope)))


def _like(x: relax.Expr, number: float) -> relax.Expr:
    return relax.const(number, x.ty.dtype.dtype)


ACTIVATIONS = {"Celu": _celu, "Elu": _elu, "Selu": _selu, "SwiGLU": _swiglu, "Swish": _swish}
"""Converters."""
