"""PyTorch's promotion of element types, written out as casts.

TVM's importer gives a number the type of the tensor beside it, so that half of an integer would be
nothing, and leaves tensors of different types to operators that take one.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

_aten = torch.ops.aten

_OF_THE_RESULT = {
    *(_aten.add, _aten.sub, _aten.rsub, _aten.mul, _aten.div, _aten.pow, _aten.atan2),
    *(_aten.remainder, _aten.fmod, _aten.floor_divide, _aten.maximum, _aten.minimum),
    *(_aten.bitwise_and, _aten.bitwise_or, _aten.bitwise_xor, _aten.where, _aten.masked_fill),
    *(_aten.clamp, _aten.clamp_min, _aten.clamp_max, _aten.sum, _aten.mean, _aten.prod),
    *(_aten.cumsum, _aten.cumprod, _aten.cat),
}
"""Compute in the type of what they return."""

_COMPARISONS = {_aten.eq, _aten.ne, _aten.lt, _aten.le, _aten.gt, _aten.ge}

_MASK = {_aten.where: 0, _aten.masked_fill: 1}
"""Which argument stays of booleans."""


def promote_types(program: ExportedProgram) -> ExportedProgram:
    """Cast what element-wise operators, sums and concatenations take to the type they compute in.

    Parameters
    ----------
    program : ExportedProgram
        In core operators; it is changed.
    """
    for node in list(program.graph.nodes):
        dtype = _computes_in(node)
        if dtype is None:
            continue
        mask = _MASK.get(node.target.overloadpacket)
        with program.graph.inserting_before(node):
            node.args = tuple(
                argument if place == mask else _cast(program.graph, argument, dtype)
                for place, argument in enumerate(node.args)
            )
    return program


def _computes_in(node: fx.Node) -> torch.dtype | None:
    """The type an operator wants its inputs in; None where it takes them as they are."""
    result = node.meta.get("val")
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(result, torch.Tensor):
        return None
    packet = node.target.overloadpacket
    if packet in _COMPARISONS:
        return torch.result_type(*[_value(argument) for argument in node.args[:2]])
    if packet in _OF_THE_RESULT:
        return result.dtype
    # Roots, exponentials and their like make floats of integers.
    return result.dtype if _makes_floats(node, result) else None


def _makes_floats(node: fx.Node, result: torch.Tensor) -> bool:
    given = [_value(argument) for argument in node.args]
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    return (
        torch.Tag.pointwise in node.target.tags
        and result.is_floating_point()
        and bool(tensors)
        and not any(value.is_floating_point() for value in tensors)
    )


def _value(argument):
    return argument.meta.get("val") if isinstance(argument, fx.Node) else argument


def _cast(graph: fx.Graph, argument, dtype: torch.dtype):
    if isinstance(argument, (list, tuple)):
        return type(argument)(_cast(graph, each, dtype) for each in argument)
    value = _value(argument)
    if not isinstance(value, torch.Tensor) or value.dtype == dtype:
        return argument
    cast = graph.call_function(_aten._to_copy.default, (argument,), {"dtype": dtype})
    cast.meta["val"] = value.to(dtype)
    return cast
