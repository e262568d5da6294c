"""Convolutions through in-register lookup tables, built once a pixel.

The table of a pixel's group of channels serves every window that covers the pixel and every unique
filter. Neighbouring output positions share the shifted sign words.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cpu import lookup
from tbn_tvm.schedules.cpu.conv import ConvKernel, Task, Tiles
from tbn_tvm.schedules.cpu.dense import MAX_ACCUMULATORS
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.layouts import taps_first
from tbn_tvm.schedules.rules import Workload

SCRATCH_BYTES = 768 << 10
"""Tables of a tile should stay in a core's own cache."""


class LookupConv(ConvKernel):
    """Tabulated sums of a pixel's channels, looked up for a vector of unique filters at once.

    Parameters
    ----------
    isa : lookup.Isa
        The instruction set.

    Notes
    -----
    Parameters: ``block`` vectors of filters and ``positions`` neighbouring outputs are computed
    together in registers, in tiles of ``rows`` output rows.
    """

    def __init__(self, isa: lookup.Isa) -> None:
        self.isa = isa
        self.name = f"lookup_conv_{isa.feature}"

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        return {
            "block": (1, 2, 3, 4, 6, 8),
            "positions": (1, 2, 4, 6, 7, 8, 12, 14, 16),
            "rows": (1, 2, 4, 7, 8, 14, 16),
        }

    def default(self, workload: Workload) -> dict[str, int]:
        vectors = -(-workload.product.unique_rows // self.isa.lanes)
        columns = Tiles.of(workload, 1).columns
        # Few positions keep the tables that a window row reads in cache.
        positions = min((4, 5), key=lambda size: (-(-columns // size) * size, size))
        rows = 8
        while rows > 1 and self._scratch(workload, Tiles.of(workload, rows)) > SCRATCH_BYTES:
            rows -= 1
        return {
            "block": min(vectors, 4),
            "positions": min(positions, columns),
            "rows": Tiles.of(workload, rows).rows,
        }

    def valid(self, workload: Workload, config: Config) -> bool:
        tiles = Tiles.of(workload, config["rows"])
        return (
            config["block"] * config["positions"] <= MAX_ACCUMULATORS
            and (config["block"] - 1) * self.isa.lanes < workload.product.unique_rows
            and config["positions"] <= tiles.columns
            and config["rows"] == tiles.rows
        )

    def _pixel(self, workload: Workload) -> tuple[int, int]:
        """Words and tables of a pixel's channels."""
        tables = -(-workload.channels // self.isa.columns)
        return -(-tables // self.isa.tables), tables

    def _scratch(self, workload: Workload, tiles: Tiles) -> int:
        """Bytes of a tile's tables."""
        down, across = tiles.plane
        return len(tiles.phases) * down * across * self._pixel(workload)[1] * self.isa.lanes * 4

    def row_words(self, signs: np.ndarray, workload: Workload, config: Config) -> np.ndarray:
        groups, filters, _ = signs.shape
        taps, channels = workload.taps, workload.channels
        pixels = taps_first(signs, taps).reshape(groups, filters, taps, channels)
        words, _ = self._pixel(workload)
        padded = np.zeros((groups, filters, taps, words * self.isa.word_columns), dtype=bool)
        padded[..., :channels] = pixels
        rows = padded.reshape(groups, filters, -1)
        return np.stack([lookup.row_words(group, self.isa) for group in rows]).reshape(-1)

    def compute(self, task: Task, workload: Workload, config: Config, extra) -> None:
        tiles, lanes = task.tiles, self.isa.lanes
        _, tables = self._pixel(workload)
        down, across = tiles.plane
        scratch = T.alloc_buffer((len(tiles.phases) * down * across * tables, lanes), "float32")
        for phase in range(len(tiles.phases)):
            self._tabulate(task, workload, scratch, phase)
        vectors = -(-workload.product.unique_rows // lanes)
        block = min(config["block"], vectors)
        whole, rest = divmod(vectors, block)
        positions = min(config["positions"], tiles.columns)
        blocks = -(-tiles.columns // positions)
        with T.serial(0, tiles.rows) as row, T.serial(0, blocks) as number:
            column = T.bind(tir.min(number * positions, tiles.columns - positions))
            if whole > 1:
                with T.serial(0, whole) as i:
                    self._outputs(task, workload, scratch, i * block, block, row, column, positions)
            else:
                self._outputs(task, workload, scratch, 0, block, row, column, positions)
            if rest:
                self._outputs(task, workload, scratch, whole * block, rest, row, column, positions)

    def _tabulate(self, task: Task, workload: Workload, scratch: tir.Buffer, phase: int) -> None:
        """Build the tables of one phase."""
        tiles, isa = task.tiles, self.isa
        (down, across), (_, tables) = tiles.plane, self._pixel(workload)
        offsets = tiles.phases[phase]
        whole, rest = divmod(workload.channels, isa.columns)
        first = task.group * workload.channels
        low, high = tiles.span(offsets[1], task.column)
        zero, ramp = T.broadcast(T.float32(0), isa.lanes), T.ramp(0, 1, isa.lanes)

        # Tables outside, pixels inside: channels may lie a power of two apart, and many lines of
        # that sort do not stay in cache together.
        with T.serial(0, down) as i:
            y = T.bind(tiles.source(0, offsets[0], task.row, i))
            line = T.bind((phase * down + i) * across)

            def clear(start, stop, table) -> None:
                with T.serial(0, stop - start) as j:
                    T.buffer_store(scratch, zero, [(line + start + j) * tables + table, ramp])

            def build(table, columns: int) -> None:
                clear(0, low, table)
                with T.serial(0, high - low) as j:
                    x = tiles.source(1, offsets[1], task.column, low + j)
                    values = [
                        task.load(first + table * isa.columns + bit, y, x) for bit in range(columns)
                    ]
                    at = (line + low + j) * tables + table
                    with T.vectorized(0, isa.lanes) as lane:
                        T.buffer_store(scratch, lookup.entry(lane, values), [at, lane])
                clear(high, across, table)

            with T.If(tiles.inside(0, y)):
                with T.Then():
                    with T.serial(0, whole) as table:
                        build(table, isa.columns)
                    if rest:
                        build(whole, rest)
                with T.Else(), T.serial(0, across * tables) as table:
                    T.buffer_store(scratch, zero, [line * tables + table, ramp])

    def _outputs(
        self,
        task: Task,
        workload: Workload,
        scratch: tir.Buffer,
        first,
        block: int,
        row,
        column,
        positions: int,
    ) -> None:
        """Compute some neighbouring outputs of a block of vectors of filters."""
        tiles, isa, lanes = task.tiles, self.isa, self.isa.lanes
        (down, across), (words, tables) = tiles.plane, self._pixel(workload)
        product, taps = workload.product, tiles.taps
        vectors, ramp = -(-product.unique_rows // lanes), T.ramp(0, 1, lanes)
        sums = T.alloc_buffer((block * positions, lanes), "float32")
        lookup.clear(sums)

        def tap_word(tap, at, word, count: int) -> None:
            """Add the tables of one word of one tap, whose pixels begin at table ``at``."""
            row_words = []
            for v in range(block):
                line = (task.group * vectors + first + v) * (len(taps) * words) + tap * words + word
                row_words.append(task.words[T.ramp(line * lanes, 1, lanes)])

            def table(t: int, position: int):
                return scratch[at + position * tables + word * isa.tables + t, ramp]

            lookup.accumulate(sums, row_words, table, positions, isa, count)

        def pixel(tap):
            return ((tap.phase * down + row + tap.row) * across + column + tap.column) * tables

        # Rows of taps outside, words inside: neighbouring taps then find their tables in cache.
        last = tables - (words - 1) * isa.tables
        for y in range(tiles.window.kernel[0]):
            width = tiles.window.kernel[1]
            chosen = [(t, T.bind(pixel(taps[t]))) for t in range(y * width, (y + 1) * width)]
            if words > 1:
                with T.serial(0, words - 1) as word:
                    for tap, at in chosen:
                        tap_word(tap, at, word, isa.tables)
            for tap, at in chosen:
                tap_word(tap, at, words - 1, last)
        for v in range(block):
            with T.serial(0, lanes) as lane:
                filter_ = (first + v) * lanes + lane

                def store(filter_=filter_, v=v, lane=lane) -> None:
                    for p in range(positions):
                        value = sums[v * positions + p, lane]
                        task.store(filter_, 0, row, column + p, value)

                if product.unique_rows % lanes == 0:
                    store()
                else:
                    with T.If(filter_ < product.unique_rows), T.Then():
                        store()
