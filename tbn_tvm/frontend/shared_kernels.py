"""Kernels written at import that many calls share, so that code does not grow with the calls."""

from __future__ import annotations

import itertools

import tvm
from tvm import relax, te
from tvm import tirx as tir

_ARITY = 16
"""Tensors that one kernel joins: it asks for each element which of them holds it."""

_OPAQUE = {"op_pattern": 8}
"""Keeps a kernel from being fused with others, which would make one of all steps' kernels."""


def stacked(bb: relax.BlockBuilder, tensors: list[relax.Expr]) -> relax.Expr:
    """Tensors of one type along a new first axis, by groups of one size, which share a kernel.

    Parameters
    ----------
    bb : relax.BlockBuilder
        Emits it.
    tensors : list of relax.Expr
        One or more, of one shape and dtype.
    """
    kernels: dict[tuple, relax.Call] = {}
    join = _stack
    while len(tensors) > 1 or join is _stack:
        groups = [tensors[at : at + _ARITY] for at in range(0, len(tensors), _ARITY)]
        tensors = [
            group[0]
            if len(group) == 1 and join is _concatenate
            else bb.emit(shared_call(bb, kernels, join, group))
            for group in groups
        ]
        join = _concatenate
    return tensors[0]


def _stack(*parts: te.Tensor) -> te.Tensor:
    def value(at, *rest):
        return _chosen([(index + 1, part(*rest)) for index, part in enumerate(parts)], at)

    return te.compute((len(parts), *parts[0].shape), value, name="stack")


def _concatenate(*parts: te.Tensor) -> te.Tensor:
    """Along the first axis, whose extents are fixed; all but the last part are of one."""
    extents = [int(part.shape[0]) for part in parts]

    def value(at, *rest):
        ends = itertools.accumulate(extents)
        cases = [
            (end, part(tir.max(tir.min(at - (end - extent), extent - 1), 0), *rest))
            for end, extent, part in zip(ends, extents, parts, strict=True)
        ]
        return _chosen(cases, at)

    return te.compute((sum(extents), *parts[0].shape[1:]), value, name="concatenate")


def _chosen(cases: list[tuple[int, tvm.ir.Expr]], at: tvm.ir.Expr) -> tvm.ir.Expr:
    """The first value whose end lies behind a place."""
    *others, (_end, value) = cases
    for end, before in reversed(others):
        value = tir.if_then_else(at < end, before, value)
    return value


def shared_call(
    bb: relax.BlockBuilder, kernels: dict, compute, arguments: list[relax.Expr], name: str = ""
) -> relax.Call:
    """A call of a kernel that is made once for all arguments of the same types.

    Parameters
    ----------
    bb : relax.BlockBuilder
        Takes the kernel.
    kernels : dict
        Those made so far, which this one may join.
    compute : callable
        Makes the results of TE tensors like the arguments.
    arguments : list of relax.Expr
        Tensors of any shapes and dtypes.
    name : str, optional
        The kernel's; that of ``compute`` by default. It stands for ``compute`` among ``kernels``.
    """
    name = name or compute.__name__.strip("_")
    key = (name, *(str(argument.ty) for argument in arguments))
    made = kernels.get(key)
    if made is None:
        made = bb.call_te(compute, *arguments, primfunc_name_hint=name, primfunc_attrs=_OPAQUE)
        kernels[key] = made
        return made
    inputs = [made.args[0], relax.Tuple(arguments), *made.args[2:]]
    return relax.Call(made.op, inputs, made.attrs, made.ty_args)
