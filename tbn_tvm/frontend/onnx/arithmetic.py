"""Operators on numbers that TVM's importer takes for simpler ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, te
from tvm import tirx as tir
from tvm.relax.frontend.onnx import onnx_frontend

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


def _extreme(name: str, combine: Callable, start: float) -> Callable:
    """A reduction that is of bool, too, which has no least or greatest number in TVM; and of floats
    that are all infinite, which are beyond the number that TVM's own starts from."""
    theirs = getattr(onnx_frontend, name)

    def convert(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
        reduce = theirs.get_converter(opset)
        x, *rest = inputs
        if _dtype(x) == "bool":
            number = bb.normalize(relax.op.astype(x, "int8"))
            return relax.op.astype(reduce(bb, [number, *rest], attrs, _NO_PARAMETERS), "bool")
        result = bb.normalize(reduce(bb, inputs, attrs, _NO_PARAMETERS))
        if "float" not in _dtype(x) or not isinstance(result, relax.Call):
            return result
        rank = len(x.ty.shape.values)
        named = result.attrs.axis
        axes = range(rank) if named is None else {int(axis) % rank for axis in named}
        keepdims = bool(result.attrs.keepdims)
        return bb.emit_te(
            lambda te_x: _reduced(te_x, sorted(axes), keepdims, combine, start),
            x,
            primfunc_name_hint=name,
        )

    return convert


def _reduced(x: te.Tensor, axes: list[int], keepdims: bool, combine: Callable, start: float):
    reducer = te.comm_reducer(combine, lambda dtype: tir.const(start, dtype))
    over = {axis: te.reduce_axis((0, x.shape[axis])) for axis in axes}

    def output(*places):
        places = iter(places)
        at = []
        for axis in range(len(x.shape)):
            place = next(places) if keepdims or axis not in over else None
            at.append(over.get(axis, place))
        return reducer(x(*at), axis=list(over.values()))

    extents = [1 if axis in over else extent for axis, extent in enumerate(x.shape)]
    shape = extents if keepdims else [e for axis, e in enumerate(extents) if axis not in over]
    return te.compute(shape, output, "extreme")


ARITHMETIC = {
    "Equal": _equal,
    "IsInf": _is_inf,
    "Mod": _mod,
    "ReduceMax": _extreme("ReduceMax", lambda a, b: tir.Max(a, b), -np.inf),
    "ReduceMin": _extreme("ReduceMin", lambda a, b: tir.Min(a, b), np.inf),
}
"""Converters."""
