"""In-register lookup tables of signed sums, for x86 SIMD.

The signed sums of a few activations (four with AVX-512, three with AVX2) are tabulated once, a
table a vector register; a permute then looks up one entry for each of 16 (8) unique rows at once.
Three instructions (shift, permute, add) do the work of 64 (24) multiply-adds, where a fused
multiply-add does 16 (8). Row signs are stored a word a row, so the shifted word is the index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T


@dataclass(frozen=True)
class Isa:
    """An instruction set that permutes a vector of floats by a vector of indices.

    Attributes
    ----------
    feature : str
        LLVM's name of the CPU feature.
    lanes : int
        Floats in a vector: unique rows at once, and entries of a table.
    columns : int
        Columns a table covers.
    permute : str
        LLVM's intrinsic ``(table, indices)``; it reads the low bits of each index only.
    """

    feature: str
    lanes: int
    columns: int
    permute: str

    @property
    def tables(self) -> int:
        """Tables whose indices share a 32-bit word."""
        return 32 // self.columns

    @property
    def word_columns(self) -> int:
        """Columns of a word."""
        return self.tables * self.columns


AVX512 = Isa("avx512f", 16, 4, "llvm.x86.avx512.permvar.sf.512")
AVX2 = Isa("avx2", 8, 3, "llvm.x86.avx2.permps")


def row_words(signs: np.ndarray, isa: Isa) -> np.ndarray:
    """Lay sign rows out for lookups.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(rows, columns)``.
    isa : Isa
        Decides about words and vectors.

    Returns
    -------
    numpy.ndarray
        uint32, shape ``(vectors, words, lanes)``: bit ``b`` of a word is the sign of its row in
        column ``word * word_columns + b``; rows and columns past the end are clear.
    """
    rows, columns = signs.shape
    vectors, words = -(-rows // isa.lanes), -(-columns // isa.word_columns)
    full = np.zeros((vectors * isa.lanes, words, 32), dtype=bool)
    padded = np.zeros((rows, words * isa.word_columns), dtype=bool)
    padded[:, :columns] = signs
    full[:rows, :, : isa.word_columns] = padded.reshape(rows, words, isa.word_columns)
    packed = np.packbits(full, axis=2, bitorder="little").view("<u4")[..., 0].astype(np.uint32)
    return np.ascontiguousarray(packed.reshape(vectors, isa.lanes, words).transpose(0, 2, 1))


def entry(lane, values: list[tir.Expr]) -> tir.Expr:
    """Entry ``lane`` of a table: the sum of its columns' values, signed by the lane's bits.

    Multiplying by a constant vector of ones takes one instruction a column.
    """
    one = tir.const(1.0, "float32")
    total = None
    for bit, value in enumerate(values):
        term = value * tir.Select(lane // 2**bit % 2 != 0, one, -one)
        total = term if total is None else total + term
    return total


def indices(word: tir.Expr, table: int, isa: Isa) -> tir.Expr:
    """Which entry of a word's table each row reads, in the low bits."""
    shift = T.broadcast(T.uint32(table * isa.columns), isa.lanes)
    return tir.shift_right(word, shift).astype(f"int32x{isa.lanes}")


def looked_up(table: tir.Expr, index: tir.Expr, isa: Isa) -> tir.Expr:
    """A vector of entries of a table."""
    return tir.call_llvm_pure_intrin(f"float32x{isa.lanes}", isa.permute, table, index)


def accumulate(
    sums: tir.Buffer,
    words: list[tir.Expr],
    tables: Callable[[int, int], tir.Expr],
    samples: int,
    isa: Isa,
    count: int | None = None,
) -> None:
    """Add what the tables of a word hold for each vector of rows and each sample.

    Parameters
    ----------
    sums : Buffer
        float32 ``(vectors * samples, lanes)``.
    words : list of expressions
        A word vector for each vector of rows.
    tables : callable
        ``(table, sample)`` to the vector that is that table of the word.
    samples : int
        Input vectors, or output positions.
    isa : Isa
        The instruction set.
    count : int, optional
        Tables that the word has; the default is all.
    """
    ramp = T.ramp(0, 1, isa.lanes)
    for table in range(isa.tables if count is None else count):
        for vector, word in enumerate(words):
            index = indices(word, table, isa)
            for sample in range(samples):
                at = [vector * samples + sample, ramp]
                T.buffer_store(
                    sums, sums[at[0], ramp] + looked_up(tables(table, sample), index, isa), at
                )


def clear(sums: tir.Buffer) -> None:
    """Zero a buffer of vectors."""
    count, lanes = (int(extent) for extent in sums.shape)
    with T.unroll(0, count) as i:
        T.buffer_store(sums, T.broadcast(T.float32(0), lanes), [i, T.ramp(0, 1, lanes)])
