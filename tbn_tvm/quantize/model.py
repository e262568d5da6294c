"""A quantized model as a list of integer operations, each with its NumPy definition.

The definitions are what compiled code is compared with, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tbn_tvm.quantize.scheme import FixedPoint, Tensor
from tbn_tvm.schedules.reference import Product, Window
from tbn_tvm.tiling import unpack_bits


@dataclass(frozen=True)
class Operation(ABC):
    """A step: named tensors in, one out.

    Attributes
    ----------
    inputs : tuple of str
        Tensors read.
    output : str
        Tensor written.
    """

    inputs: tuple[str, ...]
    output: str

    @abstractmethod
    def run(self, *arrays: np.ndarray) -> np.ndarray:
        """The output for one sample's inputs."""


@dataclass(frozen=True)
class Clamp:
    """Bounds of an output, which an activation behind an operation narrows."""

    low: int
    high: int
    dtype: str

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Integers within the bounds."""
        return np.clip(values, self.low, self.high).astype(self.dtype)


@dataclass(frozen=True)
class TiledProduct(Operation):
    """A tiled layer: integer dot products with +-1, mixed by fixed-point alphas.

    Attributes
    ----------
    operator : str
        Of the graph: ``relax.tbn.tiled_dense`` and so on.
    tile : numpy.ndarray
        uint8, packed.
    product : Product
        What is multiplied.
    window : Window or None
        Of a convolution.
    zero_point : int
        Of the input.
    fixed : FixedPoint
        A multiplier an alpha.
    clamp : Clamp
        Of the output.
    """

    operator: str
    tile: np.ndarray
    product: Product
    window: Window | None
    zero_point: int
    fixed: FixedPoint
    clamp: Clamp

    @cached_property
    def _rows(self) -> np.ndarray:
        return _segment_rows(self.tile, self.product)

    def run(self, x: np.ndarray) -> np.ndarray:
        centred = x.astype(np.int64) - self.zero_point
        rows = self._rows
        m, segments, n = rows.shape
        if self.window is None:
            dots = np.einsum("...n,msn->...ms", centred, rows)
            axis = -1
        else:
            columns = _windows(centred, self.window)
            groups = self.product.groups
            split = columns.reshape(columns.shape[0], groups, -1, *columns.shape[2:])
            grouped = rows.reshape(groups, m // groups, segments, n)
            dots = np.einsum("bgn...,gmsn->bgms...", split, grouped)
            dots = dots.reshape(dots.shape[0], m, segments, *dots.shape[4:])
            dots = np.moveaxis(dots, (1, 2), (-2, -1))
            axis = 1
        index = [
            [
                min(int(self.product.alpha_index(row, s)), self.product.alpha_count - 1)
                for s in range(segments)
            ]
            for row in range(m)
        ]
        multipliers = self.fixed.multipliers.astype(np.int64)[np.array(index)]
        sums = (dots * multipliers).sum(-1) + self.fixed.offsets
        assert np.abs(sums).max(initial=0) < 2**31
        return self.clamp(np.moveaxis(sums >> self.fixed.shift, -1, axis))


@dataclass(frozen=True)
class Add(Operation):
    """The sum of two tensors of different scales."""

    zero_points: tuple[int, int]
    fixed: FixedPoint
    clamp: Clamp

    def run(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first, second = (int(m) for m in self.fixed.multipliers)
        total = (a.astype(np.int64) - self.zero_points[0]) * first
        total = total + (b.astype(np.int64) - self.zero_points[1]) * second
        return self.clamp((total + int(self.fixed.offsets[0])) >> self.fixed.shift)


@dataclass(frozen=True)
class Rescale(Operation):
    """The same numbers with another scale, or within narrower bounds."""

    zero_point: int
    fixed: FixedPoint
    clamp: Clamp

    def run(self, x: np.ndarray) -> np.ndarray:
        total = (x.astype(np.int64) - self.zero_point) * int(self.fixed.multipliers[0])
        return self.clamp((total + int(self.fixed.offsets[0])) >> self.fixed.shift)


@dataclass(frozen=True)
class Mean(Operation):
    """The mean over axes, or over windows: a sum times a fixed-point reciprocal.

    ``window`` None means all of ``axes``.
    """

    axes: tuple[int, ...]
    keepdims: bool
    window: Window | None
    zero_point: int
    fixed: FixedPoint
    clamp: Clamp

    def run(self, x: np.ndarray) -> np.ndarray:
        centred = x.astype(np.int64) - self.zero_point
        if self.window is None:
            sums = centred.sum(self.axes, keepdims=self.keepdims)
        else:
            sums = _by_channel(centred, self.window, 0).sum(2)
        scaled = sums * int(self.fixed.multipliers[0]) + int(self.fixed.offsets[0])
        return self.clamp(scaled >> self.fixed.shift)


@dataclass(frozen=True)
class MaxPool(Operation):
    """The largest of each window; scale and zero point stay."""

    window: Window

    def run(self, x: np.ndarray) -> np.ndarray:
        lowest = np.iinfo(x.dtype).min
        return _by_channel(x.astype(np.int64), self.window, lowest).max(2).astype(x.dtype)


@dataclass(frozen=True)
class Lookup(Operation):
    """Any function of one number: its result for each of the 256 int8.

    Attributes
    ----------
    table : numpy.ndarray
        int8 or int16, shape ``(256,)``; entry ``x + 128`` is the result for ``x``.
    """

    table: np.ndarray

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.table[x.astype(np.int64) + 128]


EXPONENTIAL_BITS = 15
"""Of the exponentials of a softmax: the largest is ``2**15``, and 32,768 of them fit 31 bits."""


@dataclass(frozen=True)
class Softmax(Operation):
    """Exponentials by table, over their sum: one division an element, rounded to nearest.

    Attributes
    ----------
    axis : int
        Along which the results add up to one.
    table : numpy.ndarray
        int32, shape ``(256,)``: ``exp(-scale * d)`` for each distance ``d`` from the largest
        input, in steps of ``2**-EXPONENTIAL_BITS``.
    bits : int
        The output's scale is ``2**-bits``.
    zero_point : int
        Of the output.
    clamp : Clamp
        Likewise.
    """

    axis: int
    table: np.ndarray
    bits: int
    zero_point: int
    clamp: Clamp

    def run(self, x: np.ndarray) -> np.ndarray:
        values = x.astype(np.int64)
        exponentials = self.table[values.max(self.axis, keepdims=True) - values].astype(np.int64)
        sums = exponentials.sum(self.axis, keepdims=True)
        scaled = ((exponentials << self.bits) + (sums >> 1)) // sums
        assert ((exponentials << self.bits) + (sums >> 1)).max() < 2**31
        return self.clamp(scaled + self.zero_point)


@dataclass(frozen=True)
class Move(Operation):
    """A change of shape or order: no arithmetic.

    Attributes
    ----------
    order : tuple of int or None
        New order of the axes.
    shape : tuple of int
        New shape.
    """

    order: tuple[int, ...] | None
    shape: tuple[int, ...]

    def run(self, x: np.ndarray) -> np.ndarray:
        moved = x if self.order is None else x.transpose(self.order)
        return moved.reshape(self.shape)


@dataclass(frozen=True)
class QuantizedModel:
    """Operations in order, over one sample.

    Attributes
    ----------
    inputs : dict of str to tuple of int
        Names and shapes.
    outputs : tuple of str
        Names of tensors.
    operations : tuple of Operation
        In order.
    tensors : dict of str to Tensor
        Scale and zero point of every tensor.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    tensors: dict[str, Tensor] = field(repr=False)

    def run_integers(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Integer outputs for one sample's integer inputs: the definition."""
        values = dict(zip(self.inputs, inputs, strict=True))
        for operation in self.operations:
            values[operation.output] = operation.run(*(values[name] for name in operation.inputs))
        return tuple(values[name] for name in self.outputs)

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Real outputs for a batch of real inputs, sample by sample."""
        samples = []
        for sample in range(len(inputs[0])):
            integers = [
                self.tensors[name].quantize(x[sample : sample + 1])
                for name, x in zip(self.inputs, inputs, strict=True)
            ]
            outputs = self.run_integers(*integers)
            samples.append(
                [
                    self.tensors[name].dequantize(y)
                    for name, y in zip(self.outputs, outputs, strict=True)
                ]
            )
        return tuple(np.concatenate(pieces) for pieces in zip(*samples, strict=True))


def _segment_rows(tile: np.ndarray, product: Product) -> np.ndarray:
    """Signs of every output row, cut into segments: int64 ``(m, segments, n)``, 0 elsewhere."""
    geometry = product.geometry
    bits = np.where(unpack_bits(tile, geometry.q), 1, -1)
    rows = np.zeros((geometry.m, product.segments, geometry.n), np.int64)
    for row in range(geometry.m):
        phase = row * geometry.n % geometry.q
        signs = bits[(phase + np.arange(geometry.n)) % geometry.q]
        for segment in range(product.segments):
            start, stop = 0, geometry.n
            if product.segments > 1:
                start = max(segment * geometry.q - phase, 0)
                stop = min((segment + 1) * geometry.q - phase, geometry.n)
            rows[row, segment, start : max(stop, start)] = signs[start : max(stop, start)]
    return rows


def _by_channel(x: np.ndarray, window: Window, fill: int) -> np.ndarray:
    """Windows of each channel: ``(B, C, taps, *outputs)``, ``fill`` outside the image."""
    rank = len(window.kernel)
    pads = [(0, 0), (0, 0)]
    pads += [(window.padding[axis], window.padding[rank + axis]) for axis in range(rank)]
    padded = np.pad(x, pads, constant_values=fill)
    outputs = window.output_extents(list(x.shape[2:]))
    taken = []
    for tap in np.ndindex(*window.kernel):
        slices = tuple(
            slice(t * space, t * space + (out - 1) * step + 1, step)
            for t, space, out, step in zip(
                tap, window.dilation, outputs, window.strides, strict=True
            )
        )
        taken.append(padded[(slice(None), slice(None), *slices)])
    return np.stack(taken, axis=2)


def _windows(x: np.ndarray, window: Window) -> np.ndarray:
    """Windows channel-major: ``(B, C * taps, *outputs)``."""
    taken = _by_channel(x, window, 0)
    return taken.reshape(taken.shape[0], -1, *taken.shape[3:])
