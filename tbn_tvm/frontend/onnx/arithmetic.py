"""Operators on numbers that TVM's importer takes for simpler ones."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm import tirx as tir
from tvm.relax.frontend.onnx import onnx_frontend

from tbn_tvm.frontend.extremes import extreme

_NO_PARAMETERS: tuple[dict, dict] = ({}, {})
"""What TVM's converters look names of constants up in; ours are constants already."""


def _dtype(value: relax.Expr) -> str:
    """The element type of a tensor; none of the shapes that the importer computes with."""
    return str(value.ty.dtype) if isinstance(value.ty, relax.TensorType) else ""


def _is_inf(_bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Infinities of one sign only where the other is not asked for."""
    x = inputs[0]
    zero = relax.const(0, _dtype(x))
    signs = {
        (1, 1): lambda: relax.op.isinf(x),
        (0, 1): lambda: relax.op.logical_and(relax.op.isinf(x), relax.op.greater(x, zero)),
        (1, 0): lambda: relax.op.logical_and(relax.op.isinf(x), relax.op.less(x, zero)),
        (0, 0): lambda: relax.op.less(x, x),
    }
    return signs[bool(attrs.get("detect_negative", 1)), bool(attrs.get("detect_positive", 1))]()


def _equal(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """Of bool, too, for which TVM makes code that LLVM refuses."""
    if {_dtype(value) for value in inputs} != {"bool"}:
        return onnx_frontend.Equal.get_converter(opset)(bb, inputs, attrs, _NO_PARAMETERS)
    return relax.op.logical_not(relax.op.logical_xor(*inputs))


def _mod(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """The remainder of the divisor's sign; TVM's, by a rounded quotient, is none of an infinity."""
    x, y = inputs[:2]
    if attrs.get("fmod", 0) or "float" not in _dtype(x):
        return onnx_frontend.Mod.get_converter(opset)(bb, inputs, attrs, _NO_PARAMETERS)
    zero = relax.const(0, _dtype(x))
    rest = bb.emit(relax.op.mod(x, y))
    apart = relax.op.logical_xor(relax.op.less(rest, zero), relax.op.less(y, zero))
    apart = relax.op.logical_and(relax.op.not_equal(rest, zero), apart)
    return relax.op.where(apart, relax.op.add(rest, y), rest)


def _extreme(name: str, greatest: bool) -> Callable:
    """A reduction that is of bool, too, which has no least or greatest number in TVM."""
    theirs = getattr(onnx_frontend, name)

    def convert(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
        reduce = theirs.get_converter(opset)
        x, *rest = inputs
        if _dtype(x) == "bool":
            number = bb.normalize(relax.op.astype(x, "int8"))
            return relax.op.astype(reduce(bb, [number, *rest], attrs, _NO_PARAMETERS), "bool")
        # TVM's converter reads the axes, which are an attribute or an input.
        result = bb.normalize(reduce(bb, inputs, attrs, _NO_PARAMETERS))
        if not isinstance(result, relax.Call):
            return result
        return extreme(bb, x, result.attrs.axis, bool(result.attrs.keepdims), greatest=greatest)

    return convert


def _place_of_extreme(name: str) -> Callable:
    """Inside the axis where all are infinities, too, for which TVM's says -1, or from the end the
    extent."""
    theirs = getattr(onnx_frontend, name)

    def convert(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
        found = bb.normalize(theirs.get_converter(opset)(bb, inputs, attrs, _NO_PARAMETERS))
        inside = bb.normalize(relax.op.maximum(found, relax.const(0, "int64")))
        extent = inputs[0].ty.shape.values[attrs.get("axis", 0)]
        if not isinstance(extent, tir.IntImm):
            return inside
        return relax.op.minimum(inside, relax.const(int(extent) - 1, "int64"))

    return convert


ARITHMETIC = {
    "ArgMax": _place_of_extreme("ArgMax"),
    "ArgMin": _place_of_extreme("ArgMin"),
    "Equal": _equal,
    "IsInf": _is_inf,
    "Mod": _mod,
    "ReduceMax": _extreme("ReduceMax", greatest=True),
    "ReduceMin": _extreme("ReduceMin", greatest=False),
}
"""Converters."""
