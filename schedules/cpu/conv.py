"""The frame of CPU convolutions: output tiles shared between threads.

A task is a tile of output positions of one group of one image. It first copies (or tabulates) the
part of the input that the tile's windows cover, zeros where they hang over the edge, into scratch
memory of its own. With strides over 1 the copy is split into *phases*, one for each remainder of
the coordinates, so that neighbouring outputs read neighbouring pixels for every tap. The last tile
of an axis is moved back onto the image; what it shares with its neighbour both compute alike.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cpu.dense import SERIAL_WORK, either
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.reference import SCHEDULED, Window
from tbn_tvm.schedules.rules import Workload

MAX_COLUMNS = 64
"""Widest tile of an image; a signal's may be :data:`MAX_SAMPLES` long."""

MAX_SAMPLES = 256

MAX_PHASES = 16
"""Each phase has a copy of the code that fills it, and TVM takes more than linear time for them."""


@dataclass(frozen=True)
class Tap:
    """An element of the window: the phase it reads and its offset there, in pixels."""

    phase: int
    row: int
    column: int


@dataclass(frozen=True)
class Tiles:
    """How outputs fall into tiles, in two dimensions; a signal is an image of one row.

    Attributes
    ----------
    window : Window
        Of two axes.
    extents, outputs : (int, int)
        Of the input and the output.
    rows, columns : int
        Of a tile.
    """

    window: Window
    extents: tuple[int, int]
    outputs: tuple[int, int]
    rows: int
    columns: int

    @classmethod
    def of(cls, workload: Workload, rows: int) -> Tiles:
        """Tiles of at most ``rows`` rows."""
        window, extents, outputs = workload.window, workload.extents, workload.out_extents
        widest = MAX_COLUMNS
        if len(extents) == 1:
            before, after = window.padding
            window = Window(
                (1, *window.kernel),
                (1, *window.strides),
                (0, before, 0, after),
                (1, *window.dilation),
            )
            extents, outputs, widest = (1, *extents), (1, *outputs), MAX_SAMPLES
        parts = -(-outputs[1] // widest)
        columns = -(-outputs[1] // parts)
        return cls(window, extents, outputs, min(rows, outputs[0]), columns)

    def remainders(self, axis: int) -> range:
        """The remainders of coordinates that taps read, and where they are few some more."""
        window = self.window
        if window.kernel[axis] == 1:
            return range(1)
        step = window.strides[axis]
        return range(0, step, math.gcd(step, window.dilation[axis]))

    @property
    def phases(self) -> list[tuple[int, int]]:
        """Remainders of both coordinates."""
        return [(y, x) for y in self.remainders(0) for x in self.remainders(1)]

    @property
    def taps(self) -> list[Tap]:
        """The window's elements in order."""
        window, phases = self.window, self.phases
        taps = []
        for y in range(window.kernel[0]):
            for x in range(window.kernel[1]):
                at = [t * d for t, d in zip((y, x), window.dilation, strict=True)]
                (row, py), (column, px) = (
                    divmod(a, s) for a, s in zip(at, window.strides, strict=True)
                )
                taps.append(Tap(phases.index((py, px)), row, column))
        return taps

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns of a phase that a tile's windows cover."""
        taps = self.taps
        return (
            self.rows + max(tap.row for tap in taps),
            self.columns + max(tap.column for tap in taps),
        )

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles along each axis."""
        return -(-self.outputs[0] // self.rows), -(-self.outputs[1] // self.columns)

    def source(self, axis: int, phase: int, first, index):
        """Coordinate of the input for one of a phase; outside the input where it is padding."""
        return (first + index) * self.window.strides[axis] + phase - self.window.padding[axis]

    def inside(self, axis: int, coordinate) -> tir.Expr:
        """Whether a coordinate is one of the input."""
        return tir.all(coordinate >= 0, coordinate < self.extents[axis])

    def span(self, phase: int, first) -> tuple[tir.Expr, tir.Expr]:
        """The columns ``[low, high)`` of a phase that lie inside the input."""
        step, pad = self.window.strides[1], self.window.padding[1]
        # The least index i with (first + i) * step + phase - pad >= bound.
        bounds = [-(-(bound + pad - phase) // step) - first for bound in (0, self.extents[1])]
        return tuple(T.bind(tir.max(0, tir.min(bound, self.plane[1]))) for bound in bounds)


@dataclass(frozen=True)
class Task:
    """One tile of one group of one image.

    Attributes
    ----------
    x, words, dots : Buffer
        The function's parameters.
    tiles : Tiles
        The tiling.
    image, group : expression
        Which.
    row, column : expression
        The tile's first output.
    """

    x: tir.Buffer
    words: tir.Buffer
    dots: tir.Buffer
    tiles: Tiles
    image: tir.Expr
    group: tir.Expr
    row: tir.Expr
    column: tir.Expr

    def load(self, channel, row, column) -> tir.Expr:
        """An element of the input, in float32."""
        position = [row, column] if len(self.x.shape) == 4 else [column]
        return self.x[(self.image, channel, *position)].astype("float32")

    def store(self, filter_, segment, row, column, value) -> None:
        """Store a dot product; coordinates count from the tile's first output."""
        position = [self.row + row, self.column + column]
        if len(self.x.shape) == 3:
            position = position[1:]
        T.buffer_store(self.dots, value, [self.image, self.group, filter_, segment, *position])


class ConvKernel(Kernel):
    """A convolution in tiles; subclasses compute one.

    Notes
    -----
    The parameter ``rows`` is the number of output rows in a tile.
    """

    @abstractmethod
    def row_words(self, signs: np.ndarray, workload: Workload, config: Config) -> np.ndarray:
        """Unique filters, bool ``(groups, filters, n)``, as uint32, one-dimensional."""

    @abstractmethod
    def compute(self, task: Task, workload: Workload, config: Config, extra) -> None:
        """Write one task; ``extra`` is what :meth:`before` returned."""

    def before(self, words: tir.Buffer, workload: Workload, config: Config, loop):
        """Write what all tasks share and is done before them."""
        return None

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        # Any number of images is cut into the same tasks.
        return (workload if workload.batch else workload.at_batch(1),)

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return self.row_words(sign_rows(tile, workload.product), workload, configs[0])

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        product, config = workload.product, configs[0]
        groups = product.groups
        tiles = Tiles.of(workload, config["rows"])
        down, across = tiles.counts
        nothing = np.zeros((groups, product.unique_rows, product.geometry.n), dtype=bool)
        size = self.row_words(nothing, workload, config).size
        work = product.macs * math.prod(tiles.outputs)
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            images = tir.Var("images", "int64") if workload.batch is None else workload.batch
            channels = workload.channels * groups
            x_shape = (images, channels, *workload.extents)
            x = T.arg("x", tir.decl_buffer(x_shape, workload.dtype, "x"))
            words = T.arg("words", tir.decl_buffer((size,), "uint32", "words"))
            shape = (images, groups, product.unique_rows, product.segments, *workload.out_extents)
            dots = T.arg("dots", tir.decl_buffer(shape, "float32", "dots"))

            def over_tasks(loop: Callable) -> None:
                extra = self.before(words, workload, config, loop)
                with loop(0, images * (groups * down * across)) as task:
                    index = task // (groups * down * across)
                    rest = (task % (groups * down * across)).astype("int32")
                    row = tir.min(rest // across % down * tiles.rows, tiles.outputs[0] - tiles.rows)
                    column = tir.min(
                        rest % across * tiles.columns, tiles.outputs[1] - tiles.columns
                    )
                    group, row, column = map(T.bind, (rest // (across * down), row, column))
                    self.compute(
                        Task(x, words, dots, tiles, index, group, row, column),
                        workload,
                        config,
                        extra,
                    )

            either(
                images * work < SERIAL_WORK,
                lambda: over_tasks(T.serial),
                lambda: over_tasks(T.parallel),
            )
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
