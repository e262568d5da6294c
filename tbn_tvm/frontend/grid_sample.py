"""Sampling at the points of a grid, as PyTorch and ONNX define it."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm import tirx as tir

METHODS = ("bilinear", "nearest", "bicubic")
"""In the order of PyTorch's numbers."""

PADDINGS = ("zeros", "border", "reflection")
"""In the order of PyTorch's numbers."""


def grid_sample(
    emit, data: relax.Expr, grid: relax.Expr, method: str, padding: str, align_corners: bool
) -> relax.Expr:
    """Sample ``data`` (N, C, two or three axes) at ``grid`` (N, as many axes, coordinates).

    Where points outside are reflected, they are so before TVM's operator sees them. Its own
    reflection is repeated in its kernel for each neighbour and axis, so that compiling takes
    minutes, and it divides by zero along axes of one element.

    Parameters
    ----------
    emit : callable
        Binds an expression and returns its variable.
    data, grid : relax.Expr
        Coordinates from -1 to 1, those of the last axis of ``data`` first. The result has the
        type of ``data``; it is computed in float64 if either is of it, and else in float32.
    method : str
        One of ``METHODS``; "bilinear" is trilinear over three axes.
    padding : str
        One of ``PADDINGS``.
    align_corners : bool
        Whether -1 and 1 are the middles of the outermost elements, or their outer edges.

    Raises
    ------
    ValueError
        For another method or padding; for "bicubic" over three axes, or reflected over axes of
        free size; for integers, but where the nearest are taken.
    """
    if method not in METHODS:
        raise ValueError(f"mode {method!r}: expected one of {', '.join(METHODS)}")
    if padding not in PADDINGS:
        raise ValueError(f"padding {padding!r}: expected one of {', '.join(PADDINGS)}")
    rank = data.ty.ndim
    if rank not in (4, 5):
        raise ValueError(f"grids over {rank - 2} axes: expected 2 or 3")
    if method == "bicubic" and rank == 5:
        raise ValueError("cubic sampling over three axes is not supported")
    dtype, computed = str(data.ty.dtype), "float32"
    if not dtype.startswith(("float", "bfloat")):
        if method != "nearest":
            raise ValueError(f"{method} sampling of {dtype}: cast it to float32")
    else:
        if "float64" in (dtype, str(grid.ty.dtype)):
            computed = "float64"
        data = _cast(emit, data, computed)
    # TVM declares the type of the data, and its kernel returns that of products with the grid.
    grid = _cast(emit, grid, computed)
    if padding == "reflection":
        grid = _reflected(emit, grid)
        padding = "border"
        if method == "bicubic":
            data, grid = _with_margins(emit, data, grid, align_corners)
    # TVM has the coordinates before the result's axes.
    grid = emit(relax.op.permute_dims(grid, [0, rank - 1, *range(1, rank - 1)]))
    result = emit(
        relax.op.image.grid_sample(
            data,
            grid,
            method=method,
            layout="NCHW" if rank == 4 else "NCDHW",
            padding_mode=padding,
            align_corners=align_corners,
        )
    )
    return _cast(emit, result, dtype)


def _cast(emit, value: relax.Expr, dtype: str) -> relax.Expr:
    return value if str(value.ty.dtype) == dtype else emit(relax.op.astype(value, dtype))


def _reflected(emit, grid: relax.Expr) -> relax.Expr:
    """Coordinates brought between -1 and 1, where both mirrors are, whatever a corner means."""

    def number(value: float) -> relax.Expr:
        return relax.const(value, str(grid.ty.dtype))

    turns = emit(relax.op.add(grid, number(1.0)))
    period = emit(relax.op.floor(emit(relax.op.multiply(turns, number(0.25)))))
    along = emit(relax.op.subtract(turns, emit(relax.op.multiply(period, number(4.0)))))
    away = emit(relax.op.abs(emit(relax.op.subtract(along, number(2.0)))))
    mirrored = emit(relax.op.subtract(number(1.0), away))
    # Inside nothing is rounded, which may decide which element is the nearest.
    outside = emit(relax.op.greater(emit(relax.op.abs(grid)), number(1.0)))
    return emit(relax.op.where(outside, mirrored, grid))


def _with_margins(
    emit, data: relax.Expr, grid: relax.Expr, align_corners: bool
) -> tuple[relax.Expr, relax.Expr]:
    """Data with the two mirrored elements on each side that cubic sampling reaches for, and the
    same points on it."""
    scales = []
    for axis in (2, 3):
        extent = data.ty.shape.values[axis]
        if not isinstance(extent, tir.IntImm):
            raise ValueError(
                "cubic sampling with reflection over axes of free size: export it with them fixed"
            )
        size = int(extent)
        # Elements as far apart as mirrors are, and once more on the way back.
        period = max(2 * (size - align_corners), 1)
        along = np.arange(-2, size + 2) % period
        places = np.minimum(along, period - (not align_corners) - along)
        data = emit(relax.op.take(data, relax.const(places, "int64"), axis))
        scales.insert(0, (size - align_corners) / (size + 4 - align_corners))
    factors = relax.const(np.array(scales), str(grid.ty.dtype))
    return data, emit(relax.op.multiply(grid, factors))
