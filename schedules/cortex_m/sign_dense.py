"""Dense products of any alignment by signed additions: for rows in pieces, and for few rows.

Each piece of each unique row is a sum over 32 activations at a time, added or subtracted as bits
of a word of the tile say. The word is put together from two where a piece starts inside one.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cortex_m.pieces import (
    WORD,
    always_aligned,
    tile_words,
    word_at,
    words_size,
)
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload


class SignDense(Kernel):
    """Dense product, float32 or int8, any batch, any segments."""

    name = "sign_dense"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return tile_words(tile)

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        product = workload.product
        n, q = product.geometry.n, product.geometry.q
        rows = product.unique_rows
        sum_dtype = "float32" if workload.dtype == "float32" else "int32"
        aligned = always_aligned(product)
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            x = T.arg("x", T.Buffer((workload.batch, n), workload.dtype))
            words = T.arg("words", T.Buffer((words_size(product),), "uint32"))
            dots = T.arg("dots", T.Buffer((workload.batch, rows, product.segments), sum_dtype))

            def add(total, sample, column, positive):
                value = x[sample, column]
                if sum_dtype == "int32":
                    value = value.astype("int32") - workload.zero_point
                T.buffer_store(total, tir.Select(positive, total[0] + value, total[0] - value), [0])

            def add_word(total, sample, column, word, count):
                """Up to 32 columns, their number known."""
                held = T.alloc_buffer((1,), "uint32")
                T.buffer_store(held, word, [0])
                for bit in range(count):
                    flag = tir.bitwise_and(held[0], T.uint32(1 << bit)) != T.uint32(0)
                    add(total, sample, column + bit, flag)

            def add_piece(total, sample, start, length, position):
                """Columns from ``start`` on with the bits from ``position`` on."""
                whole = length // WORD * WORD
                if min(n, q) >= WORD:
                    with T.serial(0, length // WORD) as number:
                        word = word_at(words, position + number * WORD, aligned)
                        add_word(total, sample, start + number * WORD, word, WORD)
                if isinstance(length, int):
                    if length > whole:
                        word = word_at(words, position + whole, aligned)
                        add_word(total, sample, start + whole, word, length - whole)
                    return
                with T.If(length > whole), T.Then():
                    left = T.alloc_buffer((1,), "uint32")
                    T.buffer_store(left, word_at(words, position + whole, aligned), [0])
                    with T.serial(0, length - whole) as i:
                        positive = tir.bitwise_and(left[0], T.uint32(1)) != T.uint32(0)
                        add(total, sample, start + whole + i, positive)
                        T.buffer_store(left, left[0] >> T.uint32(1), [0])

            def begin(total):
                T.buffer_store(total, tir.const(0, sum_dtype), [0])

            def ragged(total, sample, row):
                phase = row * n % q
                with T.serial(0, product.geometry.segments) as piece:
                    if product.segments > 1:
                        begin(total)
                    start = tir.max(piece * q - phase, 0)
                    stop = tir.min((piece + 1) * q - phase, n)
                    length = tir.max(stop - start, 0)
                    # All pieces but the first begin where the tile does.
                    add_piece(total, sample, start, length, tir.Select(piece == 0, phase, 0))
                    if product.segments > 1:
                        T.buffer_store(dots, total[0], [sample, row, piece])

            def whole_tiles(total, sample, row):
                with T.serial(0, n // q) as piece:
                    if product.segments > 1:
                        begin(total)
                    add_piece(total, sample, piece * q, q, T.int32(0))
                    if product.segments > 1:
                        T.buffer_store(dots, total[0], [sample, row, piece])

            with T.serial(0, workload.batch) as sample, T.serial(0, rows) as row:
                total = T.alloc_buffer((1,), sum_dtype)
                if product.segments == 1:
                    begin(total)
                if q % n == 0:
                    add_piece(total, sample, 0, n, row * n % q)
                elif n % q == 0:
                    whole_tiles(total, sample, row)
                else:
                    ragged(total, sample, row)
                if product.segments == 1:
                    T.buffer_store(dots, total[0], [sample, row, 0])
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
