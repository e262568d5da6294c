"""Convolutions with unique filters through lookup tables, for cores without wide SIMD.

The 16 signed sums of four channels of a pixel are tabulated once; that table serves every window
that covers the pixel and every unique filter. Tables of as many input rows as a window is high are
kept in a ring. Pixels outside the image have tables of zeros, so no window is a special case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cortex_m import tables as lookup
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows, taps_first
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload

TABLE_COLUMNS = 4
ENTRIES = 16
WORD_TABLES = 8
"""Tables whose 4-bit indices share a 32-bit word."""


@dataclass(frozen=True)
class Plan:
    """Extents of a convolution as the kernel walks it; one axis has height 1."""

    workload: Workload

    def _pair(self, values) -> tuple[int, int]:
        values = tuple(int(value) for value in values)
        return values if len(values) == 2 else (1, *values)

    @property
    def kernel(self) -> tuple[int, int]:
        """Taps."""
        return self._pair(self.workload.window.kernel)

    @property
    def strides(self) -> tuple[int, int]:
        """Steps."""
        return self._pair(self.workload.window.strides)

    @property
    def dilation(self) -> tuple[int, int]:
        """Spacing of taps."""
        return self._pair(self.workload.window.dilation)

    @property
    def before(self) -> tuple[int, int]:
        """Zeros above and to the left."""
        padding = self.workload.window.padding
        before = padding[: len(padding) // 2]
        return before if len(before) == 2 else (0, *before)

    @property
    def inputs(self) -> tuple[int, int]:
        """Extents of the input."""
        return self._pair(self.workload.extents)

    @property
    def outputs(self) -> tuple[int, int]:
        """Extents of the output."""
        return self._pair(self.workload.out_extents)

    @property
    def reach(self) -> tuple[int, int]:
        """Input rows and columns from a window's first tap to its last."""
        return tuple(
            (taps - 1) * space + 1 for taps, space in zip(self.kernel, self.dilation, strict=True)
        )

    @property
    def width(self) -> int:
        """Columns of the ring: all that windows meet, padding included."""
        return (self.outputs[1] - 1) * self.strides[1] + self.reach[1]

    @property
    def tables(self) -> int:
        """Tables of a pixel."""
        return -(-self.workload.channels // TABLE_COLUMNS)

    @property
    def runs(self) -> int:
        """Stretches of neighbouring tables in a row of a window: one where taps touch."""
        return 1 if self.dilation[1] == 1 else self.kernel[1]

    @property
    def run_tables(self) -> int:
        """Tables of a stretch."""
        return self.tables * self.kernel[1] // self.runs

    @property
    def run_words(self) -> int:
        """Words of a stretch."""
        return -(-self.run_tables // WORD_TABLES)

    @property
    def row_entries(self) -> int:
        """Table entries of a row of the ring."""
        return self.width * self.tables * ENTRIES

    @property
    def ring_bytes(self) -> int:
        """Scratch that the ring of tables takes."""
        size = 4 if self.workload.dtype == "float32" else 2
        return self.reach[0] * self.row_entries * size

    def ring_place(self, row, column, tap, run):
        """Where in the ring a run of a window begins."""
        ring_row = (row * self.strides[0] + tap * self.dilation[0]) % self.reach[0]
        pixel = column * self.strides[1] + run * self.dilation[1]
        return ring_row * self.row_entries + pixel * self.tables * ENTRIES


def filter_bits(signs: np.ndarray, plan: Plan) -> np.ndarray:
    """The bits of filters in the order in which windows meet them.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(groups, filters, C * taps)``, channel-major.
    plan : Plan
        The convolution.

    Returns
    -------
    numpy.ndarray
        bool, shape ``(groups, filters, kernel rows, runs, columns)``: the channels of each tap of
        a run, tap by tap, filled up with zeros to whole tables.
    """
    groups, filters, _ = signs.shape
    height, width = plan.kernel
    channels = plan.workload.channels
    taps = taps_first(signs, plan.workload.taps).reshape(groups, filters, height, width, channels)
    padded = np.zeros((groups, filters, height, width, plan.tables * TABLE_COLUMNS), dtype=bool)
    padded[..., :channels] = taps
    return padded.reshape(groups, filters, height, plan.runs, plan.run_tables * TABLE_COLUMNS)


def filter_words(signs: np.ndarray, plan: Plan) -> np.ndarray:
    """Lay filters out for the kernel.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(groups, filters, C * taps)``, channel-major.
    plan : Plan
        The convolution.

    Returns
    -------
    numpy.ndarray
        uint32, shape ``(groups, filters, kernel rows, runs, words)``: nibble ``t`` of a run's
        words is the index into its ``t``-th table, bit ``b`` set where channel ``4 * c + b`` of
        its tap has +1. Channels past the end are clear: they are zeros in the table.
    """
    bits = filter_bits(signs, plan)
    whole = np.zeros((*bits.shape[:-1], plan.run_words * 32), dtype=bool)
    whole[..., : bits.shape[-1]] = bits
    packed = np.packbits(whole, axis=-1, bitorder="little").view("<u4")
    return np.ascontiguousarray(packed.astype(np.uint32))


class LookupConv(Kernel):
    """Convolution of one image, float32 or int8, any groups, one segment a filter."""

    name = "lookup_conv"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return filter_words(sign_rows(tile, workload.product), Plan(workload))

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        plan = Plan(workload)
        product = workload.product
        shape = (product.groups, product.unique_rows, plan.kernel[0], plan.runs, plan.run_words)
        table_dtype, sum_dtype = lookup.dtypes(workload.dtype)

        def fill(ring, at, values):
            lookup.fill(ring, at, values, workload.dtype)

        def windows(ring, words, result, group, row, column):
            with T.serial(0, product.unique_rows) as filter_:
                _window(ring, words, result, workload, group, filter_, row, column)

        empty = lookup.zero(workload.dtype)
        return ring_func(
            workload, (shape, "uint32"), (table_dtype, sum_dtype, empty), fill, windows
        )


def _window(ring, words, result, workload: Workload, group, filter_, row, column) -> None:
    """A filter's dot product with a window."""
    plan = Plan(workload)
    table_dtype, sum_dtype = lookup.dtypes(workload.dtype)
    total = T.alloc_buffer((1,), sum_dtype)
    word, place = T.alloc_buffer((1,), "uint32"), T.alloc_buffer((1,), "int32")
    lookups = plan.kernel[0] * plan.runs * plan.run_tables
    T.buffer_store(total, lookup.start(workload.dtype, lookups), [0])
    with T.serial(0, plan.kernel[0]) as tap, T.serial(0, plan.runs) as run:
        # A pointer of its own: the rest of an address is then one instruction. Its place is a
        # variable, as TVM looks for common subexpressions in pointers but declares none for them.
        T.buffer_store(place, plan.ring_place(row, column, tap, run), [0])
        near = T.decl_buffer(
            (plan.run_tables * ENTRIES,), table_dtype, data=T.address_of(ring[place[0]])
        )

        def look_up(at, count):
            T.buffer_store(word, words[group, filter_, tap, run, at], [0])
            first = at * WORD_TABLES * ENTRIES
            for entry in lookup.looked_up(near, word[0], count, workload.dtype, first):
                T.buffer_store(total, total[0] + entry, [0])

        full, rest = divmod(plan.run_tables, WORD_TABLES)
        if full:
            with T.serial(0, full) as at:
                look_up(at, WORD_TABLES)
        if rest:
            look_up(full, rest)
    T.buffer_store(result, total[0], [group, filter_, row, column])


def ring_func(workload: Workload, laid_out, dtypes, fill, windows) -> tir.PrimFunc:
    """A convolution through a ring of tables.

    Parameters
    ----------
    workload : Workload
        What to compute.
    laid_out : tuple
        Shape and dtype of the words.
    dtypes : tuple
        Dtypes of tables and of sums, and the entry for activations of zero.
    fill : callable
        ``(ring, at, values)`` writes the table of four activations.
    windows : callable
        ``(ring, words, result, group, row, column)`` writes all filters' results at a position.
    """
    plan, product = Plan(workload), workload.product
    groups, filters = product.groups, product.unique_rows
    channels, tables = workload.channels, plan.tables
    height, width = plan.inputs
    reach, columns = plan.reach[0], plan.width
    (out_h, out_w), step_h = plan.outputs, plan.strides[0]
    table_dtype, sum_dtype, empty = dtypes
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        x = T.arg("x", T.Buffer((1, groups * channels, *workload.extents), workload.dtype))
        words = T.arg("words", T.Buffer(*laid_out))
        shape = (1, groups, filters, 1, *workload.out_extents)
        dots = T.arg("dots", T.Buffer(shape, sum_dtype))
        image = T.decl_buffer((groups * channels, height, width), workload.dtype, data=x.data)
        result = T.decl_buffer((groups, filters, out_h, out_w), sum_dtype, data=dots.data)
        ring = T.alloc_buffer((reach * plan.row_entries,), table_dtype)

        def clear(start, count):
            with T.serial(0, count) as i:
                T.buffer_store(ring, empty, [start + i])

        def tabulate(group, row, column, at):
            """The tables of a pixel."""
            with T.serial(0, tables) as table:
                first = group * channels + table * TABLE_COLUMNS
                values = []
                for c in range(TABLE_COLUMNS):
                    value = image[first + c, row, column]
                    if sum_dtype == "int32":
                        value = value.astype("int32") - workload.zero_point
                    if channels % TABLE_COLUMNS:
                        inside = table * TABLE_COLUMNS + c < channels
                        value = tir.if_then_else(inside, value, tir.const(0, sum_dtype))
                    values.append(value)
                fill(ring, at + table * ENTRIES, values)

        before, after = plan.before[1], max(columns - plan.before[1] - width, 0)
        pixels = min(width, columns - before)

        def build(group, row):
            """The ring's tables of an input row, counted from the padding's first."""
            source = row - plan.before[0]
            start = row % reach * plan.row_entries
            with T.If(tir.all(source >= 0, source < height)):
                with T.Then():
                    if before:
                        clear(start, before * tables * ENTRIES)
                    with T.serial(0, pixels) as column:
                        tabulate(
                            group, source, column, start + (before + column) * tables * ENTRIES
                        )
                    if after:
                        past = (before + pixels) * tables * ENTRIES
                        clear(start + past, after * tables * ENTRIES)
                with T.Else():
                    clear(start, plan.row_entries)

        with T.serial(0, groups) as group:
            fresh = min(step_h, reach)
            if reach > fresh:
                with T.serial(0, reach - fresh) as row:
                    build(group, row)
            with T.serial(0, out_h) as row:
                with T.serial(0, fresh) as i:
                    build(group, row * step_h + reach - fresh + i)
                with T.serial(0, out_w) as column:
                    windows(ring, words, result, group, row, column)
    return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
