"""The tile-reuse operator in TE: what every other kernel is compared with.

Written for any target, any floating dtype, any batch (also symbolic) and all three alignment
cases. Two stages:

``dots``
    Dot products of the input with the *unique* sign rows, cut into segments of constant alpha
    where alphas change inside a row. This stage has all the multiply-adds.
``scatter``
    The outputs: each is a small alpha mix of ``dots``, plus bias.

Only ``unique_rows`` rows are ever computed: ``p`` times fewer than the dense product where the
tile is whole rows.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from enum import Enum

from tvm import te
from tvm import tirx as tir

from tbn_tvm.tiling import Geometry

SCHEDULED = "tbn.scheduled"
"""Function attribute of kernels whose schedule is chosen already."""

TILED_PRODUCT = "tbn.tiled_product"
"""Function attribute of kernels that compute the dot products of one tiled layer."""

UNROLLED_SEGMENTS = 4
"""Up to so many segments an output's alpha mix is written out; more are a reduction."""


class AlphaLayout(Enum):
    """Which scalar multiplies which piece of a row, told by how many there are.

    Folding batch norm gives every output channel a scale of its own, so after it alphas are
    ``ROW`` or, where alpha also changes inside a row, ``SEGMENT``. Counts never collide with
    different meanings: ``p = m`` makes a tile exactly one row, and with whole tiles a row
    ``SEGMENT`` and ``TILE`` number the same pieces in the same order.
    """

    LAYER = "one a layer"
    TILE = "one a use of the tile"
    ROW = "one an output channel"
    SEGMENT = "one a segment of each output channel"

    @classmethod
    def of(cls, geometry: Geometry, count: int) -> AlphaLayout:
        """The layout that a number of alphas means.

        Raises
        ------
        ValueError
            Where the number fits none.
        """
        sizes = {
            1: cls.LAYER,
            geometry.m * geometry.segments: cls.SEGMENT,
            geometry.m: cls.ROW,
            geometry.p: cls.TILE,
        }
        sizes[1] = cls.LAYER
        if count not in sizes:
            raise ValueError(
                f"{count} alphas: expected 1 (one a layer), {geometry.p} (one a tile), "
                f"{geometry.m} (one an output channel) or {geometry.m * geometry.segments} (one a "
                "segment of each channel)"
            )
        return sizes[count]


@dataclass(frozen=True)
class Product:
    """One tiled product, dense or convolution, as kernels see it.

    Parameters
    ----------
    geometry : Geometry
        Rows, row length, tile length.
    alpha_count : int
        How many alphas there are; see :class:`AlphaLayout`.
    groups : int
        Convolution groups; rows of different groups read different inputs.
    """

    geometry: Geometry
    alpha_count: int
    groups: int = 1

    @property
    def alpha_layout(self) -> AlphaLayout:
        """What the alphas mean."""
        return AlphaLayout.of(self.geometry, self.alpha_count)

    @property
    def group_rows(self) -> int:
        """Output channels in a group."""
        return self.geometry.m // self.groups

    @property
    def unique_rows(self) -> int:
        """Unique rows in a group."""
        return self.geometry.unique_rows(self.groups) // self.groups

    @property
    def segments(self) -> int:
        """Pieces a row is computed in: 1 unless alpha changes inside a row."""
        if self.alpha_layout in (AlphaLayout.LAYER, AlphaLayout.ROW):
            return 1
        return self.geometry.segments

    @property
    def segment_length(self) -> int:
        """The longest piece."""
        return self.geometry.n if self.segments == 1 else min(self.geometry.n, self.geometry.q)

    @property
    def has_short_segments(self) -> bool:
        """Whether segments differ in length or number from row to row."""
        return self.segments > 1 and self.geometry.n % self.geometry.q != 0

    @property
    def macs(self) -> int:
        """Multiply-adds of ``dots`` for one input vector (or one output pixel)."""
        return self.groups * self.unique_rows * self.geometry.n

    def segment_start(self, row, segment):
        """Element of the row where a segment starts (an int or a TIR expression)."""
        if self.segments == 1:
            return 0
        phase = row * self.geometry.n % self.geometry.q
        return tir.max(segment * self.geometry.q - phase, 0)

    def segment_stop(self, row, segment):
        """Element of the row where a segment stops."""
        if self.segments == 1:
            return self.geometry.n
        phase = row * self.geometry.n % self.geometry.q
        return tir.min((segment + 1) * self.geometry.q - phase, self.geometry.n)

    def alpha_index(self, row, segment):
        """Index of the alpha that scales a segment of an output row."""
        match self.alpha_layout:
            case AlphaLayout.LAYER:
                return 0
            case AlphaLayout.ROW:
                return row
            case AlphaLayout.TILE:
                return row * self.geometry.n // self.geometry.q + segment
            case AlphaLayout.SEGMENT:
                return row * self.geometry.segments + segment


@dataclass(frozen=True)
class Window:
    """How a convolution's window lies and moves, a value an axis (height before width).

    Parameters
    ----------
    kernel, strides, dilation : tuple of int
        Extent, step and spacing of the taps.
    padding : tuple of int
        Zeros added before each axis, then after each axis (top, left, bottom, right).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def phases(self) -> int:
        """Remainders of coordinates, by the strides, that taps read."""
        return math.prod(
            1 if size == 1 else step // math.gcd(step, space)
            for size, step, space in zip(self.kernel, self.strides, self.dilation, strict=True)
        )

    def output_extents(self, extents) -> list:
        """Spatial extents of the output for those of the input (ints or TIR expressions)."""
        rank = len(self.kernel)
        before, after = self.padding[:rank], self.padding[rank:]
        return [
            (extent + lo + hi - space * (size - 1) - 1) // step + 1
            for extent, lo, hi, size, step, space in zip(
                extents, before, after, self.kernel, self.strides, self.dilation, strict=True
            )
        ]


def signed(tile: te.Tensor, index, value):
    """``value`` where bit ``index`` of the packed tile is set, ``-value`` where it is clear."""
    # In uint32, which passes that normalise index types (to 64 bits, in a graph) leave alone.
    byte = tile(index // 8).astype("uint32")
    shift = tir.const(index % 8, "uint32") if isinstance(index, int) else index % 8
    bit = tir.bitwise_and(byte >> shift.astype("uint32"), tir.const(1, "uint32"))
    return tir.Select(bit != tir.const(0, "uint32"), value, -value)


def tiled_dense(
    x: te.Tensor,
    tile: te.Tensor,
    alpha: te.Tensor,
    bias: te.Tensor | None,
    product: Product,
) -> te.Tensor:
    """``y[..., o] = sum_s alpha(o, s) * dots[..., row(o), s] + bias[o]``.

    Parameters
    ----------
    x : te.Tensor
        Float, shape ``(..., n)``.
    tile : te.Tensor
        uint8, shape ``(ceil(q / 8),)``.
    alpha : te.Tensor
        Float, shape ``(product.alpha_count,)``.
    bias : te.Tensor or None
        Float, shape ``(m,)``.
    product : Product
        What is multiplied.

    Returns
    -------
    te.Tensor
        Of x's dtype, shape ``(..., m)``.
    """
    return dense_scatter(dense_dots(x, tile, product), alpha, bias, product, str(x.dtype))


def dense_dots(x: te.Tensor, tile: te.Tensor, product: Product) -> te.Tensor:
    """The first stage of :func:`tiled_dense`: shape ``(..., unique rows, segments)``."""
    rank = len(x.shape) - 1

    def term(indices, element):
        row, segment = indices[rank:]
        bit = (row * product.geometry.n + element) % product.geometry.q
        return signed(tile, bit, x(*indices[:rank], element)), row, segment

    shape = (*x.shape[:-1], product.unique_rows, product.segments)
    return _dots(shape, term, product, "tiled_dense_dots")


def dense_scatter(
    dots: te.Tensor, alpha: te.Tensor, bias: te.Tensor | None, product: Product, dtype: str
) -> te.Tensor:
    """The second stage of :func:`tiled_dense`: shape ``(..., m)``."""
    rank = len(dots.shape) - 2

    def dot(*indices):
        row, segment = indices[rank:]
        return dots(*indices[:rank], row % product.unique_rows, segment)

    shape = (*dots.shape[:rank], product.geometry.m)
    return _mix(shape, rank, dot, alpha, bias, product, dtype, "tiled_dense")


def tiled_conv(
    x: te.Tensor,
    tile: te.Tensor,
    alpha: te.Tensor,
    bias: te.Tensor | None,
    product: Product,
    window: Window,
) -> te.Tensor:
    """Convolution with a tiled weight over any number of spatial axes, channels second.

    Parameters
    ----------
    x : te.Tensor
        Float, shape ``(B, C, *spatial)``.
    tile, alpha, bias, product
        As for :func:`tiled_dense`; ``m`` is the number of output channels and
        ``n = C / groups * prod(kernel)``.
    window : Window
        Kernel, strides, padding and dilation.

    Returns
    -------
    te.Tensor
        Of x's dtype, shape ``(B, m, *spatial')``.
    """
    return conv_scatter(conv_dots(x, tile, product, window), alpha, bias, product, str(x.dtype))


def conv_dots(x: te.Tensor, tile: te.Tensor, product: Product, window: Window) -> te.Tensor:
    """The first stage of :func:`tiled_conv`.

    Shape ``(B, groups, unique rows in a group, segments, *spatial')``.
    """
    batch, _, *extents = x.shape
    taps = math.prod(window.kernel)
    group_channels = product.geometry.n // taps
    padded = _zero_padded(x, window)

    def term(indices, element):
        b, group, row, segment, *position = indices
        channel, tap = element // taps, element % taps
        taken = []
        for axis in reversed(range(len(position))):
            offset = tap % window.kernel[axis]
            tap = tap // window.kernel[axis]
            taken.insert(0, position[axis] * window.strides[axis] + offset * window.dilation[axis])
        value = padded(b, group * group_channels + channel, *taken)
        row = group * product.group_rows + row
        bit = (row * product.geometry.n + element) % product.geometry.q
        return signed(tile, bit, value), row, segment

    out_extents = window.output_extents(extents)
    shape = (batch, product.groups, product.unique_rows, product.segments, *out_extents)
    return _dots(shape, term, product, "tiled_conv_dots")


def conv_scatter(
    dots: te.Tensor, alpha: te.Tensor, bias: te.Tensor | None, product: Product, dtype: str
) -> te.Tensor:
    """The second stage of :func:`tiled_conv`: shape ``(B, m, *spatial')``."""

    def dot(b, row, segment, *position):
        group, local = row // product.group_rows, row % product.group_rows
        return dots(b, group, local % product.unique_rows, segment, *position)

    shape = (dots.shape[0], product.geometry.m, *dots.shape[4:])
    return _mix(shape, 1, dot, alpha, bias, product, dtype, "tiled_conv")


def window_scatter(
    dots: te.Tensor,
    alpha: te.Tensor,
    bias: te.Tensor | None,
    product: Product,
    dtype: str,
    extents: list[int],
) -> te.Tensor:
    """The second stage of a convolution whose first was a dense product of its windows.

    ``dots`` has shape ``(B, positions, rows, 1)``, its positions those of the spatial ``extents``;
    one group, and one segment a row. Returns shape ``(B, m, *extents)``.
    """

    def dot(b, row, segment, *position):
        flat = functools.reduce(
            lambda total, axis: total * extents[axis] + position[axis], range(len(extents)), 0
        )
        return dots(b, flat, row % product.unique_rows, segment)

    shape = (dots.shape[0], product.geometry.m, *extents)
    return _mix(shape, 1, dot, alpha, bias, product, dtype, "tiled_conv")


def _dots(shape, term, product: Product, name: str) -> te.Tensor:
    """Sum ``term(indices, element)`` over the elements of each segment of each unique row.

    Sums of 16-bit floats are kept in float32.
    """
    step = te.reduce_axis((0, product.segment_length), name="k")

    def dot(*indices):
        # The term names the row and segment; this first call is only for that.
        _, row, segment = term(indices, 0)
        start = product.segment_start(row, segment)
        value = _accumulated(term(indices, start + step)[0])
        if product.has_short_segments:
            inside = start + step < product.segment_stop(row, segment)
            value = tir.if_then_else(inside, value, tir.const(0, str(value.ty.dtype)))
        return te.sum(value, axis=step)

    return te.compute(shape, dot, name=name)


def _mix(
    shape,
    row_axis: int,
    dot,
    alpha: te.Tensor,
    bias: te.Tensor | None,
    product: Product,
    dtype: str,
    name: str,
) -> te.Tensor:
    """Outputs as alpha-weighted sums of segment dot products, plus bias.

    ``dot`` takes output indices with the segment inserted after the row.
    """

    def scaled(indices, segment):
        row = indices[row_axis]
        index = product.alpha_index(row, segment)
        if product.has_short_segments:
            # Rows with fewer segments than the longest have zero dot products for the missing
            # ones, but the index of their alpha may lie past the end.
            index = tir.min(index, product.alpha_count - 1)
        return _accumulated(alpha(index)) * dot(
            *indices[: row_axis + 1], segment, *indices[row_axis + 1 :]
        )

    if product.segments <= UNROLLED_SEGMENTS:

        def mixed(*indices):
            return functools.reduce(
                lambda total, segment: total + scaled(indices, segment),
                range(1, product.segments),
                scaled(indices, 0),
            )
    else:
        segment = te.reduce_axis((0, product.segments), name="s")
        mixed = te.compute(
            shape, lambda *indices: te.sum(scaled(indices, segment), axis=segment), name + "_mix"
        )

    def output(*indices):
        value = mixed(*indices)
        if bias is not None:
            value = value + _accumulated(bias(indices[row_axis]))
        return value.astype(dtype)

    return te.compute(shape, output, name=name)


def _accumulated(value):
    """The value in the dtype that sums are kept in."""
    return value.astype("float32") if str(value.ty.dtype) in ("float16", "bfloat16") else value


def _zero_padded(x: te.Tensor, window: Window) -> te.Tensor:
    if not any(window.padding):
        return x
    rank = len(window.kernel)
    before, after = window.padding[:rank], window.padding[rank:]
    batch, channels, *extents = x.shape

    def element(b, c, *position):
        source = [at - pad for at, pad in zip(position, before, strict=True)]
        inside = tir.all(
            *(tir.all(at >= 0, at < end) for at, end in zip(source, extents, strict=True))
        )
        return tir.if_then_else(inside, x(b, c, *source), tir.const(0, str(x.dtype)))

    shape = [lo + extent + hi for lo, extent, hi in zip(before, extents, after, strict=True)]
    return te.compute((batch, channels, *shape), element, name="padded")
