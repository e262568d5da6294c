"""Pooling of exported PyTorch programs that TVM's importer does not know."""

from __future__ import annotations

import operator

import numpy as np
from torch import fx
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.extremes import extreme


def adaptive_max_pool(node: fx.Node, importer) -> relax.Var:
    """``adaptive_max_pool2d`` and ``3d``: the greatest of each of as many windows as asked for.

    Window ``i`` of ``n`` over an axis of ``size`` goes from ``floor(i * size / n)`` to before
    ``ceil((i + 1) * size / n)``. The greatest of a block is the greatest of those of its rows, so
    axes go one after the other. ``adaptive_max_pool1d`` is exported as one over two axes.

    Raises
    ------
    FormatError
        Where the indices are used as well, a pooled axis is of free size, or there are no windows.
    """
    name = node.target.__name__.split(".")[0]
    _refuse_indices(node)
    x, windows = importer.retrieve_args(node)[:2]
    sizes = list(x.ty.shape.values)[-len(windows) :]
    if not all(isinstance(size, tir.IntImm) for size in sizes):
        raise FormatError(f"{name} over axes of free size: export the model with those axes fixed")
    if 0 in windows:
        raise FormatError(f"{name} to {list(windows)} windows: expected at least one along an axis")
    pooled = _pooled(x, [int(size) for size in sizes], list(windows), importer)
    return importer.block_builder.emit(relax.Tuple([pooled]))


def max_pool(node: fx.Node, importer) -> relax.Var:
    """``max_pool2d`` and ``3d``; TVM's converter takes no empty list for strides of the kernel's
    size, and makes zeros of indices.

    Raises
    ------
    FormatError
        Where the indices are used as well.
    """
    _refuse_indices(node)
    if len(node.args) > 2 and node.args[2] == []:
        node.update_arg(2, node.args[1])
    two = node.target.__name__.startswith("max_pool2d")
    convert = importer._max_pool2d_with_indices if two else importer._max_pool3d_with_indices
    return convert(node)


def _refuse_indices(node: fx.Node) -> None:
    if any(u.target is operator.getitem and u.args[1] == 1 and u.users for u in node.users):
        name = node.target.__name__.split(".")[0].removesuffix("_with_indices")
        raise FormatError(
            f"{name}: its indices are used, which cannot be compiled: call it with "
            "return_indices=False"
        )


def _pooled(x: relax.Expr, sizes: list[int], windows: list[int], importer) -> relax.Expr:
    emit, rank = importer.block_builder.emit, x.ty.ndim
    whole = all(size % count == 0 for size, count in zip(sizes, windows, strict=True))
    if whole and len(sizes) == 2 and rank == 4:
        kernel = [size // count for size, count in zip(sizes, windows, strict=True)]
        return emit(relax.op.nn.max_pool2d(x, kernel, strides=kernel))
    for axis, size, count in zip(range(rank - len(sizes), rank), sizes, windows, strict=True):
        first = np.arange(count) * size // count
        last = -(-(np.arange(count) + 1) * size // count) - 1
        # Shorter windows repeat their last element, which changes no maximum.
        width = int((last - first).max()) + 1
        places = np.minimum(first[:, None] + np.arange(width), last[:, None])
        taken = emit(relax.op.take(x, relax.const(places.reshape(-1), "int64"), axis))
        split = [*x.ty.shape.values[:axis], count, width, *x.ty.shape.values[axis + 1 :]]
        parts = emit(relax.op.reshape(taken, split))
        x = extreme(importer.block_builder, parts, [axis + 1], keepdims=False, greatest=True)
    return x
