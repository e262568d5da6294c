"""Greatest and least elements along axes, and where they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, te
from tvm import tirx as tir

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def extreme(
    bb, x: relax.Expr, axes: Sequence[int] | None, keepdims: bool, *, greatest: bool
) -> relax.Expr:
    """The greatest or least along some axes, all where None.

    TVM's own start from the extreme finite number, so that elements that are all infinite come
    out as that one: what a softmax over a row of masked scores then takes from them is no longer
    nothing.

    Parameters
    ----------
    bb : relax.BlockBuilder
        Emits it.
    x : relax.Expr
        Of any numbers and rank.
    axes : sequence of int or None
        Negative ones count from the last.
    keepdims : bool
        Whether they stay, with one element.
    greatest : bool
        Or the least.
    """
    if str(x.ty.dtype) not in _FLOATS:
        reduce = relax.op.max if greatest else relax.op.min
        return bb.emit(reduce(x, None if axes is None else list(axes), keepdims))
    rank = len(x.ty.shape.values)
    over = sorted(range(rank) if axes is None else {int(axis) % rank for axis in axes})
    combine, start = (tir.Max, -np.inf) if greatest else (tir.Min, np.inf)
    return bb.emit_te(
        lambda te_x: _reduced(te_x, over, keepdims, combine, start),
        x,
        primfunc_name_hint="max" if greatest else "min",
    )


def place_of_extreme(
    bb, x: relax.Expr, axis: int | None, keepdims: bool, *, greatest: bool
) -> relax.Expr:
    """The index, int64, of the first greatest or least along an axis, of all elements where None.

    TVM's own says -1 where all are infinities that it takes none for greater than its start.
    """
    locate = relax.op.argmax if greatest else relax.op.argmin
    found = bb.emit(locate(x, axis, keepdims))
    return bb.emit(relax.op.maximum(found, relax.const(0, str(found.ty.dtype))))


def _reduced(x: te.Tensor, axes: list[int], keepdims: bool, combine, start: float) -> te.Tensor:
    reducer = te.comm_reducer(
        lambda a, b: combine(a, b), lambda dtype: tir.const(start, dtype), name="extreme"
    )
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
