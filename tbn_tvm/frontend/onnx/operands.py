"""What converters ask of their operands: axes, extents that are fixed, a type to compute in."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm import tirx as tir

HALVES = ("float16", "bfloat16")
"""Floats that are computed in float32 and rounded once."""


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    return axis % rank


def shown(extent) -> int | str:
    """An extent as messages write it."""
    return int(extent) if isinstance(extent, (int, tir.IntImm)) else str(extent)


def fixed(extent, what: str) -> int:
    """An extent as a number.

    Raises
    ------
    ValueError
        Where it is free.
    """
    if not isinstance(extent, (int, tir.IntImm)):
        raise ValueError(f"{what} of free size ({extent}): export the model with it fixed")
    return int(extent)


_STORED = 2**16
"""Numbers up to which a count is a constant: what a file claims of sizes must cost it nothing."""


def numbers_up_to(emit, extent, shape: list) -> relax.Expr:
    """The numbers from zero up to an extent, which may be free, int64 in a shape."""
    if isinstance(extent, (int, tir.IntImm)) and int(extent) <= _STORED:
        return relax.const(np.arange(int(extent)).reshape([int(e) for e in shape]), "int64")
    return emit(relax.op.reshape(emit(relax.op.arange(extent, dtype="int64")), shape))


def exact(emit, x: relax.Expr) -> relax.Expr:
    """Sixteen-bit floats in float32, others as they are."""
    return cast(emit, x, "float32") if x.ty.dtype.dtype in HALVES else x


def cast(emit, x: relax.Expr, dtype: str) -> relax.Expr:
    """As that type, where it is another."""
    return x if x.ty.dtype.dtype == dtype else emit(relax.op.astype(x, dtype))
