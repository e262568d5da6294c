"""Scatters that add up, of exported PyTorch programs."""

from __future__ import annotations

from torch import fx
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import FormatError

_REDUCTIONS = {"amax": "max", "amin": "min", "prod": "mul", "sum": "add"}
"""TVM's names of what ``scatter_reduce`` does with values that meet."""


def scatter_add(node: fx.Node, importer) -> relax.Var:
    """``scatter_add``: what meets in one place is added to what is there."""
    x, axis, index, source = importer.retrieve_args(node)[:4]
    return _scattered(importer, x, axis, index, source, "add")


def scatter_reduce(node: fx.Node, importer) -> relax.Var:
    """``scatter_reduce``, of those reductions in which each value counts once.

    Raises
    ------
    FormatError
        For means, and where what is there is to be left out.
    """
    x, axis, index, source, reduction = importer.retrieve_args(node)[:5]
    if reduction not in _REDUCTIONS or not node.kwargs.get("include_self", True):
        raise FormatError(
            f"scatter_reduce by {reduction!r}, include_self="
            f"{node.kwargs.get('include_self', True)}, is not supported: expected one of "
            f"{', '.join(sorted(_REDUCTIONS))} with include_self=True"
        )
    return _scattered(importer, x, axis, index, source, _REDUCTIONS[reduction])


def _scattered(importer, x, axis: int, index, source, reduction: str) -> relax.Var:
    emit = importer.block_builder.emit
    wanted, held = list(index.ty.shape.values), list(source.ty.shape.values)
    if not wanted or not all(isinstance(extent, tir.IntImm) for extent in (*wanted, *held)):
        raise FormatError("scatters of free size, or of scalars, are not supported: fix the axes")
    if [int(extent) for extent in wanted] != [int(extent) for extent in held]:
        # Sources beyond the indices are not used.
        axes, count = list(range(len(wanted))), len(wanted)
        source = emit(relax.op.strided_slice(source, axes, [0] * count, wanted))
    return emit(relax.op.scatter_elements(x, index, source, axis % x.ty.ndim, reduction))


SCATTERS = {"scatter_add.default": scatter_add, "scatter_reduce.two": scatter_reduce}
"""Converters."""
