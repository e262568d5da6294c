"""Indexing of exported PyTorch programs by tensors, ``x[:, i, j]``, and assignment to such places.

TVM's importer takes indices that belong together for a grid, lays axes that are left whole over one
another, and adds to places in parallel, where one addition of two to the same place is lost.
"""

from __future__ import annotations

import numpy as np
from torch import fx
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import FormatError


def index(node: fx.Node, importer) -> relax.Var:
    """``aten.index``: indices broadcast with one another, and None for axes that are left whole.

    Raises
    ------
    FormatError
        For a mask, which takes as many elements as the data say.
    """
    x, indices = importer.retrieve_args(node)[:2]
    emit = importer.block_builder.emit
    given = {axis: each for axis, each in enumerate(indices) if each is not None}
    if any(str(each.ty.dtype) == "bool" for each in given.values()):
        raise FormatError(
            "the model takes elements by a mask, as many as the data say, which cannot be planned "
            "for: use torch.where"
        )
    if len(given) == 1:
        ((axis, places),) = given.items()
        return emit(relax.op.take(x, places, axis))
    axes, shape = list(given), _broadcast([each.ty.shape.values for each in given.values()])
    if _adjacent(axes) and _is_grid(given, shape):
        return _from_grid(emit, x, given, shape)
    taken = emit(relax.op.index_tensor(_in_front(emit, x, axes), list(given.values())))
    return _from_front(emit, taken, axes, len(shape))


def index_put(node: fx.Node, importer) -> relax.Var:
    """``aten.index_put``: values to the places that :func:`index` takes, or added to these.

    Raises
    ------
    FormatError
        For a mask with as many values as the data say.
    """
    x, indices, values, *accumulate = importer.retrieve_args(node)
    add = (*accumulate, node.kwargs.get("accumulate", False))[0]
    emit = importer.block_builder.emit
    given = {axis: each for axis, each in enumerate(indices) if each is not None}
    if any(str(each.ty.dtype) == "bool" for each in given.values()):
        return _put_by_mask(emit, x, given, values, add)
    axes, shape = list(given), _broadcast([each.ty.shape.values for each in given.values()])
    extents = list(x.ty.shape.values)
    rest = [extent for axis, extent in enumerate(extents) if axis not in given]
    at = axes[0] if _adjacent(axes) else 0
    values = emit(relax.op.broadcast_to(values, [*rest[:at], *shape, *rest[at:]]))
    order = [*range(at, at + len(shape)), *range(at), *range(at + len(shape), values.ty.ndim)]
    values = emit(relax.op.permute_dims(values, order))
    places = [
        emit(relax.op.expand_dims(emit(relax.op.broadcast_to(_int64(emit, each), shape)), [-1]))
        for each in given.values()
    ]
    places = places[0] if len(places) == 1 else emit(relax.op.concat(places, -1))
    data = _in_front(emit, x, axes)
    put = emit(relax.op.scatter_nd(data, places, values, "add" if add else "update"))
    back = [axes.index(a) if a in given else _place_of_rest(a, axes) for a in range(len(extents))]
    return emit(relax.op.permute_dims(put, back))


def slice_scatter(node: fx.Node, importer) -> relax.Var:
    """``x[first:last] = source``; TVM's converter fails for the whole of an axis of free size, as
    in ``x[:, 1] = source``."""
    x, source, *given = importer.retrieve_args(node)
    named = {**dict(zip(("dim", "start", "end", "step"), given, strict=False)), **node.kwargs}
    extent = x.ty.shape.values[named.get("dim", 0)]
    last = named.get("end")
    whole = last is None or (
        isinstance(last, int) and last >= (int(extent) if isinstance(extent, tir.IntImm) else 2**31)
    )
    if whole and not named.get("start") and named.get("step", 1) == 1:
        return source
    return importer._slice_scatter(node)


def unfold(node: fx.Node, importer) -> relax.Var:
    """``x.unfold(axis, size, step)``: windows along an axis, their elements along a new last one.

    Raises
    ------
    FormatError
        Where the axis is of free size.
    """
    x, axis, size, step = importer.retrieve_args(node)
    emit, axis = importer.block_builder.emit, axis % x.ty.ndim
    extent = x.ty.shape.values[axis]
    if not isinstance(extent, tir.IntImm):
        raise FormatError("unfold along an axis of free size: export the model with it fixed")
    places = np.arange(0, int(extent) - size + 1, step)[:, None] + np.arange(size)
    windows = emit(relax.op.take(x, relax.const(places, "int64"), axis))
    order = [a for a in range(windows.ty.ndim) if a != axis + 1]
    return emit(relax.op.permute_dims(windows, [*order, axis + 1]))


def _put_by_mask(emit, x: relax.Expr, given: dict, values: relax.Expr, add: bool) -> relax.Var:
    """One value for all places of a mask over the first axes."""
    mask = given.get(0)
    if len(given) != 1 or mask is None or any(_is_not_one(e) for e in values.ty.shape.values):
        raise FormatError(
            "the model assigns several values by a mask, which takes as many as the data say: use "
            "torch.where"
        )
    spread = [*mask.ty.shape.values, *[1] * (x.ty.ndim - mask.ty.ndim)]
    mask = emit(relax.op.reshape(mask, spread))
    value = emit(relax.op.reshape(values, []))
    return emit(relax.op.where(mask, emit(relax.op.add(x, value)) if add else value, x))


def _from_grid(emit, x: relax.Expr, given: dict, shape: list) -> relax.Var:
    """Along one axis after the other, from the last, which leaves those before where they are."""
    axes, extents = list(given), list(x.ty.shape.values)
    for axis, places in reversed(given.items()):
        x = emit(relax.op.take(x, emit(relax.op.reshape(places, [-1])), axis))
    return emit(relax.op.reshape(x, [*extents[: axes[0]], *shape, *extents[axes[-1] + 1 :]]))


def _is_grid(given: dict, shape: list) -> bool:
    """Whether each axis of the result belongs to one index, in the order of the indices."""
    owners = []
    for axis in range(len(shape)):
        of_axis = [
            n
            for n, each in enumerate(given.values())
            for extents in [list(each.ty.shape.values)]
            if axis >= len(shape) - len(extents)
            and _is_not_one(extents[axis - len(shape) + len(extents)])
        ]
        if len(of_axis) > 1:
            return False
        owners += of_axis
    return owners == sorted(owners)


def _in_front(emit, x: relax.Expr, axes: list[int]) -> relax.Expr:
    rest = [axis for axis in range(x.ty.ndim) if axis not in axes]
    return emit(relax.op.permute_dims(x, [*axes, *rest]))


def _from_front(emit, x: relax.Expr, axes: list[int], rank: int) -> relax.Var:
    """The indexed axes, of which there are now ``rank``, back to where PyTorch has them."""
    at = axes[0] if _adjacent(axes) else 0
    return emit(
        relax.op.permute_dims(
            x, [*range(rank, rank + at), *range(rank), *range(rank + at, x.ty.ndim)]
        )
    )


def _place_of_rest(axis: int, axes: list[int]) -> int:
    return len(axes) + axis - sum(indexed < axis for indexed in axes)


def _adjacent(axes: list[int]) -> bool:
    return axes[-1] - axes[0] + 1 == len(axes)


def _broadcast(shapes: list) -> list:
    rank = max(len(shape) for shape in shapes)
    padded = [[1] * (rank - len(shape)) + list(shape) for shape in shapes]
    return [
        next((e for e in extents if _is_not_one(e)), 1) for extents in zip(*padded, strict=True)
    ]


def _is_not_one(extent) -> bool:
    return not (isinstance(extent, (int, tir.IntImm)) and int(extent) == 1)


def _int64(emit, places: relax.Expr) -> relax.Expr:
    if str(places.ty.dtype) == "int64":
        return places
    return emit(relax.op.astype(places, "int64"))


INDEXING = {
    **dict.fromkeys(("_unsafe_index.Tensor", "index.Tensor"), index),
    **dict.fromkeys(("_unsafe_index_put.default", "index_put.default"), index_put),
    "slice_scatter.default": slice_scatter,
    "unfold.default": unfold,
}
"""Go before TVM's."""
