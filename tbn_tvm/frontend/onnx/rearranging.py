"""Operators that move elements: to the middle, back to front, from columns to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax, te, topi
from tvm import tirx as tir

from tbn_tvm.frontend.onnx.graph import dtype_name
from tbn_tvm.frontend.onnx.operands import axis_of, fixed, shown


def _center_crop_pad(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """The middle of what is too long, and zeros around what is too short."""
    x, shape = inputs
    wanted = [int(extent) for extent in shape.value.numpy().reshape(-1)]
    rank = len(x.ty.shape.values)
    axes = [axis_of(axis, rank) for axis in attrs.get("axes", range(rank))]
    if len(set(axes)) != len(axes) or len(wanted) != len(axes) or min(wanted, default=1) < 1:
        raise ValueError(f"a shape of {wanted} for axes {axes}: expected a size for each, once")
    pads = [[0, 0] for _ in range(rank)]
    for axis, size in zip(axes, wanted, strict=True):
        extent = fixed(x.ty.shape.values[axis], f"axis {axis}")
        before = abs(extent - size) // 2
        if size < extent:
            x = bb.emit(relax.op.strided_slice(x, [axis], [before], [before + size]))
        pads[axis] = [before, size - extent - before] if size > extent else [0, 0]
    if not any(before or after for before, after in pads):
        return x
    return bb.emit_te(
        lambda t: topi.nn.pad(t, [p[0] for p in pads], [p[1] for p in pads], tir.const(0, t.dtype)),
        x,
        primfunc_name_hint="pad",
    )


def _reverse_sequence(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """The first elements of each sequence back to front, as many as its length says."""
    x, lengths = inputs
    time, batch = attrs.get("time_axis", 0), attrs.get("batch_axis", 1)
    if {time, batch} != {0, 1} or len(x.ty.shape.values) < 2:
        raise ValueError(f"time on axis {time} and batch on axis {batch}: expected 0 and 1")
    extent = x.ty.shape.values[time]
    if isinstance(lengths, tvm.ir.GenericConst):
        values = lengths.value.numpy()
        if values.min(initial=0) < 0 or values.max(initial=0) > fixed(extent, "time"):
            raise ValueError(f"lengths {values.tolist()} of {shown(extent)}: expected 0 to that")

    def reverse(t: te.Tensor, n: te.Tensor) -> te.Tensor:
        def output(*places):
            place, length = places[time], n(places[batch]).astype("int64")
            # What data say is kept inside.
            there = tir.Max(tir.Min(length, extent) - 1 - place, tir.const(0, "int64"))
            source = tir.Select(place < length, there, place)
            return t(*(source if axis == time else at for axis, at in enumerate(places)))

        return te.compute(t.shape, output, "reverse")

    return bb.emit_te(reverse, x, lengths, primfunc_name_hint="reverse_sequence")


def _space_to_depth(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """The block's place before the channel (DCR), or after it (CRD)."""
    x, block = inputs[0], attrs["blocksize"]
    mode = attrs.get("mode", b"DCR")
    order = {b"DCR": [0, 3, 5, 1, 2, 4], b"CRD": [0, 1, 3, 5, 2, 4]}.get(mode)
    if order is None:
        raise ValueError(f"mode {mode.decode(errors='replace')!r}: expected 'DCR' or 'CRD'")
    n, channels, *sides = x.ty.shape.values
    height, width = (fixed(side, "a side") for side in sides)
    channels = fixed(channels, "channels")
    if block < 1 or height % block or width % block:
        raise ValueError(f"blocks of {block} do not tile {height} by {width}")
    split = [n, channels, height // block, block, width // block, block]
    x = bb.emit(relax.op.permute_dims(bb.emit(relax.op.reshape(x, split)), order))
    shape = [n, channels * block * block, height // block, width // block]
    return relax.op.reshape(x, shape)


def _col2im(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Sums of the blocks that cover an element, each block a column."""
    x, image, block = inputs
    image, block = ([int(n) for n in v.value.numpy().reshape(-1)] for v in (image, block))
    rank = len(image)
    strides = list(attrs.get("strides", [1] * rank))
    dilations = list(attrs.get("dilations", [1] * rank))
    pads = list(attrs.get("pads", [0] * 2 * rank))
    if len(block) != rank or [len(strides), len(dilations), len(pads)] != [rank, rank, 2 * rank]:
        raise ValueError(f"blocks of {block} in an image of {image}: expected as many axes each")
    if min([*image, *block, *strides, *dilations]) < 1 or min(pads) < 0:
        raise ValueError("expected positive sizes, strides and dilations, and no negative pads")
    if len(x.ty.shape.values) != 3:
        raise ValueError(f"columns of {len(x.ty.shape.values)} axes: expected 3")
    steps = [
        (image[i] + pads[i] + pads[rank + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(rank)
    ]
    n, rows, columns = x.ty.shape.values
    rows, columns = fixed(rows, "rows"), fixed(columns, "columns")
    if min(steps) < 1 or columns != math.prod(steps) or rows % math.prod(block):
        raise ValueError(
            f"{rows} rows and {columns} columns: expected a multiple of {math.prod(block)}, and "
            f"{math.prod(steps)}"
        )
    channels = rows // math.prod(block)
    x = bb.emit(relax.op.reshape(x, [n, channels, *block, *steps]))
    return bb.emit_te(
        lambda t: _overlapped(t, image, block, steps, strides, dilations, pads),
        x,
        primfunc_name_hint="col2im",
    )


def _overlapped(
    t: te.Tensor,
    image: Sequence[int],
    block: Sequence[int],
    steps: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> te.Tensor:
    """Of each element, over the places in a block that it can be at."""
    ks = [te.reduce_axis((0, size), f"k{i}") for i, size in enumerate(block)]

    def output(n, channel, *places):
        at, fits = [], tir.const(True, "bool")
        for i, place in enumerate(places):
            start = place + pads[i] - ks[i] * dilations[i]
            step = tir.floordiv(start, strides[i])
            inside = tir.all(start >= 0, tir.floormod(start, strides[i]) == 0, step < steps[i])
            fits = tir.all(fits, inside)
            at.append(tir.Max(tir.Min(step, steps[i] - 1), 0))
        value = tir.Select(fits, t(n, channel, *ks, *at), tir.const(0, t.dtype))
        return te.sum(value, axis=ks)

    return te.compute([*t.shape[:2], *image], output, "col2im")


def _tensor_scatter(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """A cache with an update written into it, from a place of each example on."""
    cache, update, starts = (inputs[i] for i in range(3))
    rank = len(cache.ty.shape.values)
    axis = axis_of(attrs.get("axis", -2), rank)
    if not axis:
        raise ValueError("axis 0 is the batch: expected another")
    mode = attrs.get("mode", b"linear")
    if mode not in (b"linear", b"circular"):
        raise ValueError(f"mode {mode.decode(errors='replace')!r}: expected 'linear' or 'circular'")
    longest = fixed(cache.ty.shape.values[axis], f"axis {axis} of the cache")
    length = fixed(update.ty.shape.values[axis], f"axis {axis} of the update")
    if length > longest:
        raise ValueError(f"an update of {length} into a cache of {longest}")
    if starts is None:
        starts = relax.op.zeros([cache.ty.shape.values[0]], "int64")
        starts = bb.emit(starts)

    def number(value: int) -> tir.IntImm:
        return tir.const(value, "int64")

    def scatter(t: te.Tensor, u: te.Tensor, first: te.Tensor) -> te.Tensor:
        def output(*places):
            start = first(places[0])
            if mode == b"circular":
                offset = tir.floormod(places[axis] - start, number(longest))
            else:
                # Data that point outside are kept inside.
                start = tir.Max(tir.Min(start, number(longest - length)), number(0))
                offset = places[axis] - start
            new = tir.all(offset >= 0, offset < length)
            near = tir.Max(tir.Min(offset, number(length - 1)), number(0))
            at = (near if i == axis else place for i, place in enumerate(places))
            return tir.Select(new, u(*at), t(*places))

        return te.compute(t.shape, output, "scatter")

    return bb.emit_te(scatter, cache, update, starts, primfunc_name_hint="tensor_scatter")


def _bit_cast(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """The same bits as another type of as many."""
    x, wanted = inputs[0], dtype_name(attrs["to"])
    dtype = x.ty.dtype.dtype
    widths = [16 if name == "bfloat16" else 8 * np.dtype(name).itemsize for name in (dtype, wanted)]
    if widths[0] != widths[1]:
        raise ValueError(f"{dtype} as {wanted}, which has another size")
    if dtype == wanted:
        return x
    if dtype == "bool":
        return relax.op.astype(bb.emit(relax.op.astype(x, "uint8")), wanted)
    if wanted == "bool":
        raise ValueError(f"{dtype} as bool, which has two values only")
    return bb.emit_te(
        lambda t: te.compute(
            t.shape, lambda *i: tir.call_intrin(wanted, "tirx.reinterpret", t(*i)), "bits"
        ),
        x,
        primfunc_name_hint="bit_cast",
    )


REARRANGING = {
    "BitCast": _bit_cast,
    "CenterCropPad": _center_crop_pad,
    "Col2Im": _col2im,
    "ReverseSequence": _reverse_sequence,
    "SpaceToDepth": _space_to_depth,
    "TensorScatter": _tensor_scatter,
}
"""Converters."""
