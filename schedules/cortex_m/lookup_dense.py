"""Dense product with unique rows through lookup tables, for cores without wide SIMD.

Four columns at a time, the 16 possible signed sums of four activations are tabulated once; each
unique row then costs one table look-up and one addition for four weights. Bits are stored
column-group-major, so each table is built once and every word is read once, in order.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cortex_m import tables
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload

TABLE_COLUMNS = 4
"""Columns a table covers: 16 entries."""

WORD_TABLES = 8
"""Tables whose 4-bit indices share a 32-bit word."""

WORD_COLUMNS = TABLE_COLUMNS * WORD_TABLES


def column_words(signs: np.ndarray) -> np.ndarray:
    """Lay sign rows out for :class:`LookupDense`.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(rows, columns)``.

    Returns
    -------
    numpy.ndarray
        uint32, shape ``(ceil(columns / 32), rows)``: bit ``b`` of word ``[g, i]`` is the sign of
        row ``i`` in column ``32 * g + b``; columns past the end are clear.
    """
    rows, columns = signs.shape
    words = -(-columns // WORD_COLUMNS)
    padded = np.zeros((rows, words * WORD_COLUMNS), dtype=bool)
    padded[:, :columns] = signs
    packed = np.packbits(padded, axis=1, bitorder="little").view("<u4")
    return np.ascontiguousarray(packed.T.astype(np.uint32))


class LookupDense(Kernel):
    """Four columns a table, one lookup and addition for four weights of a row.

    float32 or int8, any batch, one segment a row. Tables take 512 bytes of scratch, or 256.
    """

    name = "lookup_dense"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        return column_words(signs)

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        """The kernel ``(x, words, dots)``, ``words`` as :func:`column_words` makes them."""
        rows, columns = workload.product.unique_rows, workload.product.geometry.n
        batch, dtype = workload.batch, workload.dtype
        table_dtype, sum_dtype = tables.dtypes(dtype)
        full, rest = divmod(columns, WORD_COLUMNS)
        last = -(-rest // TABLE_COLUMNS)
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            x = T.arg("x", T.Buffer((batch, columns), dtype))
            words = T.arg("words", T.Buffer((full + (rest > 0), rows), "uint32"))
            dots = T.arg("dots", T.Buffer((batch, rows, 1), sum_dtype))
            table = T.alloc_buffer((WORD_TABLES * tables.ENTRIES,), table_dtype)

            def value(sample, column, inside=True):
                if not inside:
                    return tir.const(0, sum_dtype)
                if sum_dtype == "float32":
                    return x[sample, column]
                return x[sample, column].astype("int32") - workload.zero_point

            def add(sample, word, count):
                with T.serial(0, rows) as row:
                    held = T.alloc_buffer((1,), "uint32")
                    total = T.alloc_buffer((1,), sum_dtype)
                    T.buffer_store(held, words[word, row], [0])
                    T.buffer_store(total, dots[sample, row, 0], [0])
                    for entry in tables.looked_up(table, held[0], count, dtype):
                        T.buffer_store(total, total[0] + entry, [0])
                    T.buffer_store(dots, total[0], [sample, row, 0])

            with T.serial(0, batch) as sample:
                with T.serial(0, rows) as row:
                    start = tables.start(dtype, full * WORD_TABLES + last)
                    T.buffer_store(dots, start, [sample, row, 0])
                if full:
                    with T.serial(0, full) as word:
                        with T.serial(0, WORD_TABLES) as t:
                            first = word * WORD_COLUMNS + t * TABLE_COLUMNS
                            values = [value(sample, first + c) for c in range(TABLE_COLUMNS)]
                            tables.fill(table, t * tables.ENTRIES, values, dtype)
                        add(sample, word, WORD_TABLES)
                for t in range(last):
                    first = full * WORD_COLUMNS + t * TABLE_COLUMNS
                    here = range(first, first + TABLE_COLUMNS)
                    values = [value(sample, c, c < columns) for c in here]
                    tables.fill(table, t * tables.ENTRIES, values, dtype)
                if last:
                    add(sample, full, last)
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
