"""Lookup kernels for cores with the M-profile vector extension (MVE, also called Helium).

As the scalar kernels, with several rows in a vector: their entries of a table are gathered by one
instruction. Four rows of float32, or eight of int8, whose sums of up to 32 tables fit 16 bits. What
needs vectors is C, in functions that the model's source defines where a kernel names them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cortex_m.lookup_conv import TABLE_COLUMNS, Plan
from tbn_tvm.schedules.cortex_m.tables import COLUMNS, ENTRIES
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows, taps_first
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload

PREFIX = "tbn_mve_"
"""Of the C functions."""


class Vectors:
    """What depends on the dtype of activations.

    Attributes
    ----------
    lanes : int
        Rows in a vector.
    word_tables : int
        Tables whose indices share a word of a lane's width.
    chunk_tables : int
        Most tables that one call takes.
    table, sums, words : str
        Dtypes.
    """

    def __init__(self, activations: str) -> None:
        is_float = activations == "float32"
        self._suffix = "f32" if is_float else "s16"
        self.lanes, self.word_tables, self.chunk_tables = (4, 8, 8) if is_float else (8, 4, 32)
        self.table, self.sums = ("float32", "float32") if is_float else ("int16", "int32")
        self.words = "uint32" if is_float else "uint16"

    def rows(self, count: int) -> int:
        """Rows, filled up to whole vectors."""
        return -(-count // self.lanes) * self.lanes

    def words_in(self, tables: int, rows: int) -> int:
        """Words of a number of rows that read so many tables."""
        return -(-tables // self.word_tables) * self.rows(rows)

    def chunks(self, tables: int) -> list[tuple[int, int]]:
        """First table and number of tables of each call that a product needs."""
        step = self.chunk_tables
        return [(first, min(step, tables - first)) for first in range(0, tables, step)]

    def pack(self, signs: np.ndarray) -> np.ndarray:
        """Lay sign rows out for :meth:`look_up`.

        Parameters
        ----------
        signs : numpy.ndarray
            bool, shape ``(..., rows, columns)``.

        Returns
        -------
        numpy.ndarray
            Shape ``(..., words)``. By chunk of tables, by vector of rows, by word of a row, by row:
            nibble ``t`` is the index into the word's table ``t``, its bit ``b`` set where column
            ``4 * t + b`` is +1. Rows and columns past the end are clear.
        """
        *lead, rows, columns = signs.shape
        tables, width = -(-columns // COLUMNS), self.word_tables * COLUMNS
        words = -(-tables // self.word_tables)
        padded = np.zeros((*lead, self.rows(rows), words * width), dtype=bool)
        padded[..., :rows, :columns] = signs
        packed = np.packbits(padded, axis=-1, bitorder="little").view(np.dtype(self.words))
        vectors = packed.reshape(*lead, -1, self.lanes, words)
        step = self.chunk_tables // self.word_tables
        parts = [
            np.swapaxes(vectors[..., first : first + step], -1, -2).reshape(*lead, -1)
            for first in range(0, words, step)
        ]
        return np.ascontiguousarray(np.concatenate(parts, axis=-1))

    def fill(self, table, at, values: list) -> None:
        """Write the table of four activations, which are 0 where they mean 0."""
        self._call("fill", table.access_ptr("rw", offset=at), *values)

    def look_up(self, sums, words, table, rows: int, count: int) -> None:
        """Add to the sums of rows what their words name in a chunk's tables; all addresses."""
        self._call("look_up", sums, words, table, T.int32(self.rows(rows)), T.int32(count))

    def _call(self, name: str, *arguments) -> None:
        T.evaluate(tir.call_extern("void", f"{PREFIX}{name}_{self._suffix}", *arguments))


class MveDense(Kernel):
    """Dense product, float32 or int8, any batch, one segment a row."""

    name = "mve_dense"

    def rows(self, workload: Workload, configs: tuple[Config, ...]) -> int:
        return Vectors(workload.dtype).rows(workload.product.unique_rows)

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        return Vectors(workload.dtype).pack(signs)

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        vectors = Vectors(workload.dtype)
        batch, columns = workload.batch, workload.product.geometry.n
        rows = self.rows(workload, configs)
        tables = -(-columns // COLUMNS)
        chunk = vectors.chunk_tables
        full, rest = divmod(columns, chunk * COLUMNS)
        chunk_words = vectors.words_in(chunk, rows)
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            x = T.arg("x", T.Buffer((batch, columns), workload.dtype))
            size = vectors.words_in(tables, rows)
            words = T.arg("words", T.Buffer((size,), vectors.words))
            dots = T.arg("dots", T.Buffer((batch, rows, 1), vectors.sums))
            table = T.alloc_buffer((min(chunk, tables) * ENTRIES,), vectors.table)

            def value(sample, column):
                if vectors.sums == "float32":
                    return x[sample, column]
                return x[sample, column].astype("int32") - workload.zero_point

            def tabulate(sample, first, t, count=COLUMNS):
                values = [value(sample, first + c) for c in range(count)]
                values += [tir.const(0, vectors.sums)] * (COLUMNS - count)
                vectors.fill(table, t * ENTRIES, values)

            def look_up(sample, at, count):
                vectors.look_up(
                    dots.access_ptr("rw", offset=sample * rows),
                    words.access_ptr("r", offset=at * chunk_words),
                    table.access_ptr("r"),
                    rows,
                    count,
                )

            with T.serial(0, batch) as sample:
                with T.serial(0, rows) as row:
                    T.buffer_store(dots, tir.const(0, vectors.sums), [sample, row, 0])
                if full:
                    with T.serial(0, full) as at:
                        with T.serial(0, chunk) as t:
                            tabulate(sample, (at * chunk + t) * COLUMNS, t)
                        look_up(sample, at, chunk)
                if rest:
                    whole, part = divmod(rest, COLUMNS)
                    first = full * chunk * COLUMNS
                    if whole:
                        with T.serial(0, whole) as t:
                            tabulate(sample, first + t * COLUMNS, t)
                    if part:
                        tabulate(sample, first + whole * COLUMNS, whole, part)
                    look_up(sample, full, whole + (part > 0))
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})


@dataclass(frozen=True)
class Runs(Plan):
    """A convolution as stretches of neighbouring tables: one a pixel after the other."""

    @property
    def runs(self) -> int:
        """Stretches of neighbouring tables in a row of a window: one where taps touch."""
        return 1 if self.dilation[1] == 1 else self.kernel[1]

    @property
    def run_tables(self) -> int:
        """Tables of a stretch."""
        return self.tables * self.kernel[1] // self.runs

    def ring_place(self, row, column, tap, run):
        """Where in the ring a run of a window begins."""
        ring_row = (row * self.strides[0] + tap * self.dilation[0]) % self.reach[0]
        pixel = column * self.strides[1] + run * self.dilation[1]
        return ring_row * self.row_entries + pixel * self.tables * ENTRIES


def filter_bits(signs: np.ndarray, plan: Runs) -> np.ndarray:
    """The bits of filters in the order in which windows meet them.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(groups, filters, C * taps)``, channel-major.
    plan : Runs
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


class MveConv(Kernel):
    """Convolution of one image, float32 or int8, any groups, one segment a filter."""

    name = "mve_conv"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        bits = filter_bits(sign_rows(tile, workload.product), Runs(workload))
        return Vectors(workload.dtype).pack(np.moveaxis(bits, 1, -2))

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        vectors, plan, product = Vectors(workload.dtype), Runs(workload), workload.product
        filters = product.unique_rows
        size = vectors.words_in(plan.run_tables, filters)
        shape = (product.groups, plan.kernel[0], plan.runs, size)
        chunk_words = vectors.words_in(vectors.chunk_tables, filters)

        def windows(ring, words, result, group, row, column):
            sums = T.alloc_buffer((vectors.rows(filters),), vectors.sums)
            with T.serial(0, vectors.rows(filters)) as filter_:
                T.buffer_store(sums, tir.const(0, vectors.sums), [filter_])
            with T.serial(0, plan.kernel[0]) as tap, T.serial(0, plan.runs) as run:
                near = plan.ring_place(row, column, tap, run)
                place = ((group * plan.kernel[0] + tap) * plan.runs + run) * size
                for number, (first, count) in enumerate(vectors.chunks(plan.run_tables)):
                    vectors.look_up(
                        sums.access_ptr("rw"),
                        words.access_ptr("r", offset=place + number * chunk_words),
                        ring.access_ptr("r", offset=near + first * ENTRIES),
                        filters,
                        count,
                    )
            with T.serial(0, filters) as filter_:
                T.buffer_store(result, sums[filter_], [group, filter_, row, column])

        return _ring_func(
            workload,
            (shape, vectors.words),
            (vectors.table, vectors.sums, tir.const(0, vectors.table)),
            vectors.fill,
            windows,
        )


def _ring_func(workload: Workload, laid_out, dtypes, fill, windows) -> tir.PrimFunc:
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
    plan, product = Runs(workload), workload.product
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
