"""Convolutions with unique filters through lookup tables, for cores without wide SIMD.

The 16 signed sums of four channels of a pixel are tabulated once; that table serves every window
that covers the pixel and every unique filter. Tables of as many input rows as a window is high are
kept in a ring. Pixels outside the image have tables of zeros, so no window is a special case.

Same entries of neighbouring pixels are neighbours, so one index serves several positions of a
filter; and of int8, whose entries have 16 bits, one load and one addition serve two positions.
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
from tbn_tvm.schedules.plane import Plane
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload

TABLE_COLUMNS = 4
ENTRIES = 16
WORD_TABLES = 8
"""Tables whose 4-bit indices share a 32-bit word."""

MAX_POSITIONS = 4
"""Positions that share indices."""

UNIT_LOOKUPS = 32
"""Lookups written out one after the other; also, as many as 16 bits can sum."""


class Plan(Plane):
    """Extents of a convolution as the kernel walks it."""

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
    def row_entries(self) -> int:
        """Table entries of a row of the ring."""
        return self.width * self.tables * ENTRIES

    @property
    def ring_bytes(self) -> int:
        """Scratch that the ring of tables takes."""
        size = 4 if self.workload.dtype == "float32" else 2
        return self.reach[0] * self.row_entries * size


@dataclass(frozen=True)
class Units:
    """How the lookups of a row of a window are split into loops over equal stretches of code.

    A unit is some taps times some tables, at most :data:`UNIT_LOOKUPS`. Units are ordered by
    tables, then by taps; the last tables may be fewer than the others.
    """

    plan: Plan

    @property
    def tables(self) -> int:
        """Tables of a unit but for the last."""
        return min(self.plan.tables, WORD_TABLES)

    @property
    def taps(self) -> int:
        """Taps of a unit."""
        width = self.plan.kernel[1]
        return width if width * self.tables <= UNIT_LOOKUPS else 1

    @property
    def steps(self) -> int:
        """Units in a row of a window with the same tables."""
        return self.plan.kernel[1] // self.taps

    @property
    def full(self) -> tuple[int, int]:
        """Numbers of whole stretches of tables and of tables left over."""
        return divmod(self.plan.tables, self.tables)

    def words(self, tables: int) -> int:
        """Words of a unit."""
        return -(-tables * self.taps // WORD_TABLES)

    @property
    def row_words(self) -> int:
        """Words of a row of a window."""
        full, rest = self.full
        return self.steps * (full * self.words(self.tables) + (self.words(rest) if rest else 0))


def ring_bytes(workload: Workload) -> int:
    """Scratch of a convolution through tables."""
    return Plan(workload).ring_bytes


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
        uint32, shape ``(groups, filters, kernel rows, words)``: unit by unit, each in words of its
        own. Nibbles go tap by tap, then table by table; a nibble is the index into its table, bit
        ``b`` set where channel ``4 * c + b`` of its tap has +1. Channels past the end are clear:
        they are zeros in the table.
    """
    groups, filters, _ = signs.shape
    (height, width), channels, units = plan.kernel, plan.workload.channels, Units(plan)
    taps = taps_first(signs, plan.workload.taps).reshape(groups, filters, height, width, channels)
    padded = np.zeros((groups, filters, height, width, plan.tables * TABLE_COLUMNS), dtype=bool)
    padded[..., :channels] = taps
    parts = []
    for first in range(0, plan.tables, units.tables):
        tables = min(units.tables, plan.tables - first)
        bits = padded[..., first * TABLE_COLUMNS : (first + tables) * TABLE_COLUMNS]
        bits = bits.reshape(groups, filters, height, units.steps, -1)
        whole = np.zeros((*bits.shape[:-1], units.words(tables) * 32), dtype=bool)
        whole[..., : bits.shape[-1]] = bits
        packed = np.packbits(whole, axis=-1, bitorder="little").view("<u4")
        parts.append(packed.reshape(groups, filters, height, -1))
    return np.ascontiguousarray(np.concatenate(parts, axis=-1).astype(np.uint32))


class LookupConv(Kernel):
    """Convolution of one image, float32 or int8, any groups, one segment a filter."""

    name = "lookup_conv"
    version = 2

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return filter_words(sign_rows(tile, workload.product), Plan(workload))

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        plan, product = Plan(workload), workload.product
        groups, filters, channels = product.groups, product.unique_rows, workload.channels
        (height, width), reach, columns = plan.inputs, plan.reach[0], plan.width
        (out_h, out_w), (step_h, step_w) = plan.outputs, plan.strides
        table_dtype, sum_dtype = lookup.dtypes(workload.dtype)
        units, pitch = Units(plan), plan.tables * columns
        positions = max(p for p in (1, 2, MAX_POSITIONS) if p <= out_w)
        # Words that start at any 16 bits: the small cores have no such loads.
        pairs = workload.dtype == "int8" and "dsp" in workload.features
        pair_loads = pairs and step_w == 1 and positions > 1
        pixels = min(width, columns - plan.before[1])
        pair_stores = pairs and pixels > 1
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            x = T.arg("x", T.Buffer((1, groups * channels, *workload.extents), workload.dtype))
            shape = (groups, filters, plan.kernel[0], units.row_words)
            words = T.arg("words", T.Buffer(shape, "uint32"))
            shape = (1, groups, filters, 1, *workload.out_extents)
            dots = T.arg("dots", T.Buffer(shape, sum_dtype))
            image = T.decl_buffer((groups * channels, height, width), workload.dtype, data=x.data)
            result = T.decl_buffer((groups, filters, out_h, out_w), sum_dtype, data=dots.data)
            ring = T.alloc_buffer((reach * plan.row_entries,), table_dtype)

            def clear(start, count):
                with T.serial(0, count) as i:
                    T.buffer_store(ring, lookup.zero(workload.dtype), [start + i])

            def activation(channel, row, column):
                if sum_dtype == "float32":
                    return image[channel, row, column]
                first = image[channel, row, column].astype("int32")
                if not pair_stores:
                    return first - workload.zero_point
                second = image[channel, row, column + 1].astype("int32")
                return first + second * 65536 - lookup.PAIR * workload.zero_point

            def tabulate(group, row, column, at, table, count=TABLE_COLUMNS):
                """A table of a pixel, or of two."""
                first = group * channels + table * TABLE_COLUMNS
                values = [activation(first + c, row, column) for c in range(count)]
                values += [tir.const(0, sum_dtype)] * (TABLE_COLUMNS - count)
                lookup.spread(ring, at + table * columns, pitch, values, pair_stores)

            def build(group, row):
                """The ring's tables of an input row, counted from the padding's first."""
                source = row - plan.before[0]
                start = row % reach * plan.row_entries
                full, rest = divmod(channels, TABLE_COLUMNS)
                with T.If(tir.all(source >= 0, source < height)):
                    with T.Then(), T.serial(0, -(-pixels // 2) if pair_stores else pixels) as i:
                        column = i
                        if pair_stores:
                            column = tir.min(i * 2, pixels - 2) if pixels % 2 else i * 2
                        at = start + plan.before[1] + column
                        if full:
                            with T.serial(0, full) as table:
                                tabulate(group, source, column, at, table)
                        if rest:
                            tabulate(group, source, column, at, full, rest)
                    with T.Else():
                        clear(start, plan.row_entries)

            def add_unit(near, place, words_at, totals, tables):
                """Lookups of some taps and tables, for every position."""
                word, packed = (T.alloc_buffer((n,), "uint32") for n in (1, positions // 2 or 1))
                for number in range(units.taps * tables):
                    if number % WORD_TABLES == 0:
                        T.buffer_store(word, words_at(number // WORD_TABLES), [0])
                    tap, table = divmod(number, tables)
                    nibble = lookup.nibble(word[0], number % WORD_TABLES)
                    at = place + nibble * pitch + table * columns + tap * plan.dilation[1]
                    if not pair_loads:
                        for i in range(positions):
                            entry = near[at + i * step_w].astype(sum_dtype)
                            T.buffer_store(totals, totals[i] + entry, [i])
                        continue
                    for i in range(positions // 2):
                        entry = lookup.load_pair(near, at + 2 * i)
                        T.buffer_store(packed, packed[i] + entry if number else entry, [i])
                if pair_loads:
                    for i in range(positions):
                        half = packed[i // 2]
                        half = half >> T.uint32(16) if i % 2 else half & T.uint32(0xFFFF)
                        T.buffer_store(totals, totals[i] + half.astype("int32"), [i])

            def add_row(near, group, filter_, tap, totals):
                """Lookups of a row of the window."""

                def stretch(first, tables, word):
                    with T.serial(0, units.steps) as step:
                        add_unit(
                            near,
                            first * columns + step * units.taps * plan.dilation[1],
                            lambda at: words[
                                group, filter_, tap, word + step * units.words(tables) + at
                            ],
                            totals,
                            tables,
                        )

                full, rest = units.full
                size = units.steps * units.words(units.tables)
                with T.serial(0, full) as number:
                    stretch(number * units.tables, units.tables, number * size)
                if rest:
                    stretch(full * units.tables, rest, full * size)

            def windows(group, filter_, row, column):
                """A filter's dot products with neighbouring windows."""
                totals = T.alloc_buffer((positions,), sum_dtype)
                place = T.alloc_buffer((1,), "int32")
                lookups = plan.kernel[0] * plan.kernel[1] * plan.tables
                for i in range(positions):
                    T.buffer_store(totals, lookup.start(workload.dtype, lookups), [i])
                with T.serial(0, plan.kernel[0]) as tap:
                    # A pointer of its own: the rest of an address is then one instruction. Its
                    # place is a variable, as TVM looks for common subexpressions in pointers but
                    # declares none for them.
                    ring_row = (row * step_h + tap * plan.dilation[0]) % reach
                    T.buffer_store(place, ring_row * plan.row_entries + column * step_w, [0])
                    near = T.decl_buffer(
                        (plan.row_entries,), table_dtype, data=T.address_of(ring[place[0]])
                    )
                    add_row(near, group, filter_, tap, totals)
                for i in range(positions):
                    T.buffer_store(result, totals[i], [group, filter_, row, column + i])

            clear(0, reach * plan.row_entries)
            with T.serial(0, groups) as group:
                fresh = min(step_h, reach)
                if reach > fresh:
                    with T.serial(0, reach - fresh) as row:
                        build(group, row)
                with T.serial(0, out_h) as row:
                    with T.serial(0, fresh) as i:
                        build(group, row * step_h + reach - fresh + i)
                    with T.serial(0, -(-out_w // positions)) as block:
                        # The last positions are computed twice where they fill no block.
                        column = block * positions
                        if out_w % positions:
                            column = tir.min(column, out_w - positions)
                        with T.serial(0, filters) as filter_:
                            windows(group, filter_, row, column)
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
