"""Dense product with unique rows by multiply-adds with decoded signs, for any SIMD CPU.

Bits of a vector of rows become plus and minus one in registers, once for all samples of a block.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cpu.dense import Block, DenseKernel
from tbn_tvm.schedules.cpu.lookup import clear
from tbn_tvm.schedules.rules import Workload

WORD = 32
"""Columns of a word."""

SIGN, ONE = 0x80000000, 0x3F800000
"""Bits of a float32: the sign, and one."""


def row_words(signs: np.ndarray, lanes: int) -> np.ndarray:
    """Lay sign rows out for :class:`PanelDense`.

    Returns
    -------
    numpy.ndarray
        uint32, shape ``(vectors, words, lanes)``: bit ``b`` of a word is set where its row is -1
        in column ``32 * word + b``; rows and columns past the end are clear.
    """
    rows, columns = signs.shape
    vectors, words = -(-rows // lanes), -(-columns // WORD)
    full = np.zeros((vectors * lanes, words * WORD), dtype=bool)
    full[:rows, :columns] = ~signs
    packed = np.packbits(full, axis=1, bitorder="little").view("<u4").astype(np.uint32)
    return np.ascontiguousarray(packed.reshape(vectors, lanes, words).transpose(0, 2, 1))


class PanelDense(DenseKernel):
    """A blocked product of samples with rows decoded in registers.

    The vectors are plain TIR, so every instruction set gets its own.
    """

    name = "panel"
    lanes = 8

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        return {"block": (1, 2, 4), "samples": (1, 2, 3, 4, 6, 8)}

    def default(self, workload: Workload) -> dict[str, int]:
        many = (workload.batch or 1) >= 8
        return {"block": min(1 if many else 4, self.vectors(workload)), "samples": 4 if many else 1}

    def row_words(self, signs: np.ndarray) -> np.ndarray:
        return row_words(signs, self.lanes)

    def scratch_shape(self, n: int, samples: int) -> tuple[int, ...]:
        return (samples, -(-n // WORD) * WORD)

    def prepare(self, block: Block, n: int) -> None:
        padded = -(-n // WORD) * WORD
        with T.serial(0, block.samples) as sample:
            with T.serial(0, n) as column:
                value = block.x[block.first + sample, column].astype("float32")
                T.buffer_store(block.scratch, value, [sample, column])
            if padded > n:
                with T.serial(0, padded - n) as column:
                    T.buffer_store(block.scratch, T.float32(0), [sample, n + column])

    def walk(self, block: Block, n: int, first, vectors: int) -> None:
        lanes, words = self.lanes, -(-n // WORD)
        ramp = T.ramp(0, 1, lanes)
        sums = T.alloc_buffer((vectors * block.samples, lanes), "float32")
        clear(sums)

        def constant(value: int):
            return T.broadcast(T.uint32(value), lanes)

        with T.serial(0, words) as w:
            for v in range(vectors):
                word = block.words[T.ramp(((first + v) * words + w) * lanes, 1, lanes)]
                for bit in range(WORD):
                    sign = tir.bitwise_and(
                        tir.shift_left(word, constant(WORD - 1 - bit)), constant(SIGN)
                    )
                    weight = T.reinterpret(f"float32x{lanes}", tir.bitwise_or(sign, constant(ONE)))
                    for s in range(block.samples):
                        at = v * block.samples + s
                        value = T.broadcast(block.scratch[s, w * WORD + bit], lanes)
                        T.buffer_store(sums, sums[at, ramp] + weight * value, [at, ramp])
        for v in range(vectors):
            for s in range(block.samples):
                at = v * block.samples + s
                self.store(block, s, (first + v) * lanes, lambda lane, at=at: sums[at, lane])
