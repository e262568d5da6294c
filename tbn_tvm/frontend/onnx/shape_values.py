"""Shapes as TVM computes with them, apart from tensors; and as tensors, where they are used so."""

from __future__ import annotations

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.frontend.onnx.shape_arithmetic import MAX_EXTENTS, compute, objects, takes

_TAKES_SHAPES = {
    "ConstantOfShape": {0},
    "Expand": {1},
    "Range": {0, 1, 2},
    "Reshape": {1},
    "Resize": {2, 3},
    "Slice": {1, 2, 3, 4},
    "Unsqueeze": {1},
}
"""Inputs that are shapes to TVM's converters, by operator."""

_MAX_TERMS = 64
"""Symbols and numbers of one extent; more make no extent of a model, and cost without end."""


def is_shape(value) -> bool:
    """Whether TVM has this value of a model apart from tensors."""
    return isinstance(value, relax.ShapeExpr) or (
        value is not None and not isinstance(value, tvm.ir.GenericConst) and _is_number(value)
    )


def _is_number(value) -> bool:
    return bool(tvm.ir.is_prim_expr(value))


def shape_of_shapes(kind: str, inputs: list, attributes: dict) -> relax.Expr | None:
    """What a node makes of shapes: a shape, a number or a constant; None where it needs tensors."""
    values = []
    for at, given in enumerate(inputs):
        if isinstance(given, tvm.ir.GenericConst) and not takes(kind, at, str(given.ty.dtype)):
            return None
        values.append(None if given is None else _elements(given))
        if given is not None and values[-1] is None:
            return None
    if kind == "Equal":
        return _equal(values)
    made = compute(kind, attributes, values, _quotient)
    if made is None or any(_terms(element, _MAX_TERMS) < 0 for element in made.flat):
        return None
    if all(isinstance(element, int) for element in made.flat):
        return relax.const(made.astype(np.int64), "int64")
    return relax.ShapeExpr(list(made)) if made.ndim else relax.prim_value(made.item())


def with_tensors(bb, kind: str, inputs: list) -> list:
    """The inputs of a node, shapes that it does not take as such made tensors."""
    taken = _TAKES_SHAPES.get(kind, ())
    return [
        as_tensor(bb, value) if is_shape(value) and at not in taken else value
        for at, value in enumerate(inputs)
    ]


def as_tensor(bb, value) -> relax.Expr:
    """A shape or a number as an int64 tensor on one axis, or none."""
    elements = _elements(value)
    if all(isinstance(element, int) for element in elements.flat):
        return relax.const(elements.astype(np.int64), "int64")
    tensor = bb.emit(relax.op.shape_to_tensor(relax.ShapeExpr(list(elements.reshape(-1)))))
    return tensor if elements.ndim else bb.emit(relax.op.reshape(tensor, []))


def _elements(value) -> np.ndarray | None:
    if isinstance(value, tvm.ir.GenericConst):
        array = value.value.numpy()
        if array.ndim > 1 or array.size > MAX_EXTENTS:
            return None
        return objects((int(number) for number in array.flat), array.shape)
    if isinstance(value, relax.ShapeExpr):
        return objects((_number(extent) for extent in value.values), (len(value.values),))
    return objects([_number(value)], ()) if _is_number(value) else None


def _number(extent):
    return int(extent) if isinstance(extent, tir.IntImm) else extent


def _equal(values: list[np.ndarray]) -> relax.Expr | None:
    """Whether extents are the same; None where the data decides."""
    left, right = np.broadcast_arrays(*values)
    same = []
    for a, b in zip(left.flat, right.flat, strict=True):
        numbers = [element for element in (a, b) if isinstance(element, int)]
        if len(numbers) == 2:
            same.append(a == b)
        elif not numbers and tvm_ffi.structural_equal(a, b):
            same.append(True)
        elif numbers and numbers[0] < 0 and _not_negative(b if isinstance(a, int) else a):
            same.append(False)
        else:
            return None
    return relax.const(np.array(same, bool).reshape(left.shape), "bool")


def _quotient(a, b):
    """Towards zero, as ONNX has it; where nothing is negative, as TVM simplifies."""
    a, b = (tir.const(x, "int64") if isinstance(x, int) else x for x in (a, b))
    if isinstance(b, tir.IntImm) and not int(b):
        return None
    plain = _not_negative(a) and _not_negative(b)
    return tir.floordiv(a, b) if plain else tir.truncdiv(a, b)


def _not_negative(expr) -> bool:
    """Extents are at least zero, and so are their sums, products and quotients."""
    if isinstance(expr, (int, tir.IntImm)):
        return int(expr) >= 0
    if isinstance(expr, (tir.Add, tir.Mul, tir.FloorDiv)):
        return _not_negative(expr.a) and _not_negative(expr.b)
    return isinstance(expr, tir.Var)


def _terms(expr, left: int) -> int:
    """How many of the terms left an expression leaves; negative where it has more."""
    if left < 0 or expr is None:
        return -1
    if hasattr(expr, "a") and hasattr(expr, "b"):
        return _terms(expr.b, _terms(expr.a, left))
    return left - 1
