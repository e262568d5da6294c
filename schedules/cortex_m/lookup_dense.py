"""Dense product with unique rows through lookup tables, for cores without wide SIMD.

Four columns at a time, the 16 possible signed sums of four activations are tabulated once; each
unique row then costs one table look-up and one addition for four weights. Bits are stored
column-group-major, so each table is built once and every word is read once, in order.
"""

from __future__ import annotations

import functools
import operator

import numpy as np
from tvm import s_tir, te
from tvm import tirx as tir

from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.reference import SCHEDULED, Product
from tbn_tvm.schedules.rules import Workload

TABLE_COLUMNS = 4
"""Columns a table covers: 16 entries."""

WORD_TABLES = 8
"""Tables whose 4-bit indices share a 32-bit word."""

WORD_COLUMNS = TABLE_COLUMNS * WORD_TABLES


def column_words(signs: np.ndarray) -> np.ndarray:
    """Lay sign rows out for :func:`prim_func`.

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
    """Four columns a table, one lookup and addition for four weights of a row."""

    name = "lookup_dense"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        return column_words(signs)

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        return prim_func(workload.product)


def prim_func(product: Product) -> tir.PrimFunc:
    """The scheduled kernel ``(x, words, dots)``.

    ``x`` is float32 ``(1, n)``, ``words`` as :func:`column_words` makes them, ``dots`` float32
    ``(1, unique_rows, 1)``. Its tables take 512 bytes of scratch.
    """
    rows, columns = product.unique_rows, product.geometry.n
    words = -(-columns // WORD_COLUMNS)
    x = te.placeholder((1, columns), "float32", "x")
    signs = te.placeholder((words, rows), "uint32", "words")

    def taken(word, table, column):
        position = word * WORD_COLUMNS + table * TABLE_COLUMNS + column
        if columns % WORD_COLUMNS == 0:
            return x(0, position)
        return tir.if_then_else(position < columns, x(0, position), tir.const(0, "float32"))

    values = te.compute((words, WORD_TABLES, TABLE_COLUMNS), taken, "values")
    # Sums of columns {0, 1} and of {2, 3}; a table entry is one of each.
    pairs = (words, WORD_TABLES, 4)
    low = te.compute(pairs, lambda w, t, pattern: _signed_pair(values, w, t, 0, pattern), "low")
    high = te.compute(pairs, lambda w, t, pattern: _signed_pair(values, w, t, 2, pattern), "high")
    table = te.compute(
        (words, WORD_TABLES, 16),
        lambda w, t, pattern: low(w, t, pattern % 4) + high(w, t, pattern // 4),
        "table",
    )
    word = te.reduce_axis((0, words), "word")

    def looked_up(index, row):
        nibble = tir.bitwise_and(signs(word, row) >> tir.const(4 * index, "uint32"), 15)
        return table(word, index, nibble.astype("int32"))

    dots = te.compute(
        (1, rows, 1),
        lambda b, row, s: te.sum(
            functools.reduce(operator.add, (looked_up(t, row) for t in range(WORD_TABLES))),
            axis=word,
        ),
        "lookup_dots",
    )
    return _schedule(te.create_prim_func([x, signs, dots]))


def _signed_pair(values, word, table, first, pattern):
    terms = []
    for bit in range(2):
        value = values(word, table, first + bit)
        terms.append(tir.Select(pattern // 2**bit % 2 != 0, value, -value))
    return terms[0] + terms[1]


def _schedule(func: tir.PrimFunc) -> tir.PrimFunc:
    """Build the eight tables of a word of columns, then walk the rows; all short loops unrolled."""
    sch = s_tir.Schedule(func)
    dots = sch.get_sblock("lookup_dots")
    batch, row, segment, word = sch.get_loops(dots)
    sch.reorder(batch, segment, word, row)
    sch.decompose_reduction(dots, word)
    table = sch.get_sblock("table")
    sch.compute_at(table, word)
    each_table, entry = sch.get_loops(table)[-2:]
    sch.unroll(entry)
    for name in ("low", "high", "values"):
        block = sch.get_sblock(name)
        sch.compute_at(block, each_table)
        sch.unroll(sch.get_loops(block)[-1])
    return sch.mod["main"].without_attr("global_symbol").with_attr(SCHEDULED, True)
