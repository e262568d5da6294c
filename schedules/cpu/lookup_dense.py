"""Dense product with unique rows through in-register lookup tables."""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cpu import lookup
from tbn_tvm.schedules.cpu.dense import Block, DenseKernel
from tbn_tvm.schedules.rules import Workload


class LookupDense(DenseKernel):
    """Tabulated sums of activations, looked up for a vector of unique rows at once.

    Parameters
    ----------
    isa : Isa
        The instruction set.
    """

    version = 2

    def __init__(self, isa: lookup.Isa) -> None:
        self.isa = isa
        self.lanes = isa.lanes
        self.name = f"lookup_{isa.feature}"

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        return {"block": (1, 2, 3, 4, 6, 8), "samples": (1, 2, 3, 4, 6, 8)}

    def default(self, workload: Workload) -> dict[str, int]:
        vectors = self.vectors(workload)
        return {"block": min(4, vectors), "samples": 4 if (workload.batch or 1) >= 8 else 1}

    def row_words(self, signs: np.ndarray) -> np.ndarray:
        return lookup.row_words(signs, self.isa)

    def _words(self, n: int) -> int:
        return -(-n // self.isa.word_columns)

    def scratch_shape(self, n: int, samples: int) -> tuple[int, ...]:
        return (self._words(n) * self.isa.tables, samples, self.lanes)

    def prepare(self, block: Block, n: int) -> None:
        columns = self.isa.columns
        whole = n // columns  # tables with all their columns

        def value(sample, column, guarded: bool):
            loaded = block.x[block.first + sample, column].astype("float32")
            return tir.if_then_else(column < n, loaded, T.float32(0)) if guarded else loaded

        def build(table, sample, guarded: bool) -> None:
            values = [value(sample, table * columns + bit, guarded) for bit in range(columns)]
            with T.vectorized(0, self.lanes) as lane:
                T.buffer_store(block.scratch, lookup.entry(lane, values), [table, sample, lane])

        with T.serial(0, block.samples) as sample:
            with T.serial(0, whole) as table:
                build(table, sample, False)
            with T.serial(0, self._words(n) * self.isa.tables - whole) as table:
                build(whole + table, sample, True)

    def walk(self, block: Block, n: int, first, vectors: int) -> None:
        ramp, words = T.ramp(0, 1, self.lanes), self._words(n)
        sums = T.alloc_buffer((vectors * block.samples, self.lanes), "float32")
        lookup.clear(sums)
        with T.serial(0, words) as w:
            row_words = [
                block.words[T.ramp(((first + v) * words + w) * self.lanes, 1, self.lanes)]
                for v in range(vectors)
            ]

            def table(t: int, sample: int):
                return block.scratch[w * self.isa.tables + t, sample, ramp]

            lookup.accumulate(sums, row_words, table, block.samples, self.isa)
        for v in range(vectors):
            for s in range(block.samples):
                at = v * block.samples + s
                self.store(block, s, (first + v) * self.lanes, lambda lane, at=at: sums[at, lane])
