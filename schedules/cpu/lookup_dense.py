"""Dense product with unique rows through in-register lookup tables, for x86 SIMD.

The signed sums of a few activations (four with AVX-512, three with AVX2) are tabulated once, a
table a vector register; a permute then looks up one entry for each of 16 (8) unique rows at once.
Three instructions (shift, permute, add) do the work of 64 (24) multiply-adds, where a fused
multiply-add does 16 (8). Row signs are stored a word a row, so the shifted word is the index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script import tirx as T

from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows, taps_first
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload


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

MAX_BLOCK = 4
"""Vectors of rows that share each table while it is in a register."""

SERIAL_WORK = 1 << 21
"""Multiply-adds below which threads cost more than they save."""

MANY_SAMPLES = 8
"""From so many samples on, threads share samples; below, they share rows."""


@dataclass(frozen=True)
class Shape:
    """How rows and columns fall into blocks and words."""

    isa: Isa
    rows: int
    columns: int
    max_block: int = MAX_BLOCK

    @property
    def words(self) -> int:
        """Words of a row."""
        return -(-self.columns // self.isa.word_columns)

    @property
    def block(self) -> int:
        """Vectors of rows in a block."""
        return min(self.max_block, -(-self.rows // self.isa.lanes))

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return -(-self.rows // (self.block * self.isa.lanes))

    @property
    def padded_rows(self) -> int:
        """Rows that are computed: the rest of the last block is never read."""
        return self.blocks * self.block * self.isa.lanes


def row_words(signs: np.ndarray, shape: Shape) -> np.ndarray:
    """Lay sign rows out for :func:`prim_func`.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(rows, columns)``.
    shape : Shape
        How they fall into blocks.

    Returns
    -------
    numpy.ndarray
        uint32, shape ``(blocks, words, block, lanes)``: bit ``b`` of a word is the sign of its
        row in column ``word * word_columns + b``; rows and columns past the end are clear.
    """
    isa = shape.isa
    padded = np.zeros((shape.padded_rows, shape.words * isa.word_columns), dtype=bool)
    padded[: shape.rows, : shape.columns] = signs
    full = np.zeros((shape.padded_rows, shape.words, 32), dtype=bool)
    full[..., : isa.word_columns] = padded.reshape(shape.padded_rows, shape.words, -1)
    words = np.packbits(full, axis=2, bitorder="little").view("<u4")[..., 0].astype(np.uint32)
    blocked = words.reshape(shape.blocks, shape.block, isa.lanes, shape.words)
    return np.ascontiguousarray(blocked.transpose(0, 3, 1, 2))


def prim_func(shape: Shape, batch: int | None) -> tir.PrimFunc:
    """The kernel ``(x, words, dots)``.

    ``x`` is float32 ``(batch, n)``, ``words`` as :func:`row_words` makes them, ``dots`` float32
    ``(batch, padded rows, 1)``, of which the first ``unique_rows`` are meant. ``batch`` None is any
    number, read at run time.
    """
    isa = shape.isa
    lanes, tables, columns = isa.lanes, isa.tables, isa.columns
    n, words, block, blocks = shape.columns, shape.words, shape.block, shape.blocks
    work = shape.rows * n
    whole = n // columns  # tables with all their columns
    vector, indices = f"float32x{lanes}", f"int32x{lanes}"

    def entry(x, sample, table, lane, guarded):
        """Entry ``lane`` of a table: the signed sum of its columns."""
        total = None
        for bit in range(columns):
            column = table * columns + bit
            value = x[sample, column]
            if guarded:
                value = tir.if_then_else(column < n, value, tir.const(0.0, "float32"))
            term = tir.Select(lane // 2**bit % 2 != 0, value, -value)
            total = term if total is None else total + term
        return total

    def looked_up(table, word, shift):
        moved = tir.shift_right(word, T.broadcast(shift.astype("uint32"), lanes))
        return tir.call_llvm_pure_intrin(vector, isa.permute, table, moved.astype(indices))

    # Plain Python decides what is written; the script below only writes it.
    serial_always = batch is not None and batch * work < SERIAL_WORK
    by_sample = batch is not None and batch >= MANY_SAMPLES
    zero = T.broadcast(T.float32(0), lanes)

    @T.macro
    def build(x, table, sample):
        for t in T.serial(whole):
            for lane in T.vectorized(lanes):
                table[t, lane] = entry(x, sample, t, lane, False)
        for t in T.serial(words * tables - whole):
            for lane in T.vectorized(lanes):
                table[whole + t, lane] = entry(x, sample, whole + t, lane, True)

    @T.macro
    def walk(table, signs, dots, sample, b):
        sums = T.alloc_buffer((block, lanes), "float32")
        for i in T.unroll(block):
            sums[i, T.ramp(0, 1, lanes)] = zero
        for w in T.serial(words):
            for t in T.unroll(tables):
                for i in T.unroll(block):
                    sums[i, T.ramp(0, 1, lanes)] = sums[i, T.ramp(0, 1, lanes)] + looked_up(
                        table[w * tables + t, T.ramp(0, 1, lanes)],
                        signs[b, w, i, T.ramp(0, 1, lanes)],
                        t * columns,
                    )
        for i in T.unroll(block):
            for lane in T.vectorized(lanes):
                dots[sample, (b * block + i) * lanes + lane, 0] = sums[i, lane]

    @T.macro
    def in_one_thread(x, signs, dots, samples):
        table = T.alloc_buffer((words * tables, lanes), "float32")
        for sample in T.serial(samples):
            build(x, table, sample)
            for b in T.serial(blocks):
                walk(table, signs, dots, sample, b)

    @T.macro
    def sharing_samples(x, signs, dots, samples):
        for sample in T.parallel(samples):
            table = T.alloc_buffer((words * tables, lanes), "float32")
            build(x, table, sample)
            for b in T.serial(blocks):
                walk(table, signs, dots, sample, b)

    @T.macro
    def sharing_rows(x, signs, dots, samples):
        table = T.alloc_buffer((words * tables, lanes), "float32")
        for sample in T.serial(samples):
            build(x, table, sample)
            for b in T.parallel(blocks):
                walk(table, signs, dots, sample, b)

    if batch is None:

        @T.prim_func(s_tir=True, private=True)
        def kernel(x_handle: T.handle, words_handle: T.handle, dots_handle: T.handle):
            samples = T.int64()
            x = T.match_buffer(x_handle, (samples, n), "float32")
            signs = T.match_buffer(words_handle, (blocks, words, block, lanes), "uint32")
            dots = T.match_buffer(dots_handle, (samples, shape.padded_rows, 1), "float32")
            if samples * work < SERIAL_WORK:
                in_one_thread(x, signs, dots, samples)
            else:
                if samples < MANY_SAMPLES:
                    sharing_rows(x, signs, dots, samples)
                else:
                    sharing_samples(x, signs, dots, samples)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x: T.Buffer((batch, n), "float32"),
            signs: T.Buffer((blocks, words, block, lanes), "uint32"),
            dots: T.Buffer((batch, shape.padded_rows, 1), "float32"),
        ):
            if T.bool(serial_always):
                in_one_thread(x, signs, dots, batch)
            else:
                if T.bool(by_sample):
                    sharing_samples(x, signs, dots, batch)
                else:
                    sharing_rows(x, signs, dots, batch)

    return kernel.with_attrs({"tirx.noalias": True, SCHEDULED: True})


class LookupDense(Kernel):
    """Tabulated sums of activations, looked up for a vector of unique rows at once.

    Parameters
    ----------
    isa : Isa
        The instruction set.

    Notes
    -----
    ``block`` is the number of vectors of rows that share a table while it is in a register.
    """

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self.name = f"lookup_{isa.feature}"

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        return {"block": (MAX_BLOCK, 1, 2, 3, 6, 8)}

    def shape(self, workload: Workload, configs: tuple[Config, ...]) -> Shape:
        """Blocks and words of a workload."""
        product = workload.product
        return Shape(self.isa, product.unique_rows, product.geometry.n, configs[0]["block"])

    def rows(self, workload: Workload, configs: tuple[Config, ...]) -> int:
        return self.shape(workload, configs).padded_rows

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        return row_words(taps_first(signs, workload.taps), self.shape(workload, configs))

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        # A convolution's windows are the samples of the dense product.
        batch = workload.batch
        if not workload.is_dense:
            batch = None if batch is None else batch * math.prod(workload.out_extents)
        return prim_func(self.shape(workload, configs), batch)
