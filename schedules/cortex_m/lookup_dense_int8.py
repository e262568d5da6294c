"""Dense product with unique rows and int8 activations through lookup tables.

As :mod:`tbn_tvm.schedules.cortex_m.lookup_dense`, in integers: any core, no library calls.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cortex_m import tables
from tbn_tvm.schedules.cortex_m.lookup_dense import WORD_COLUMNS, WORD_TABLES, column_words
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload


class LookupDenseInt8(Kernel):
    """Four columns a table, one lookup and addition for four weights of a row."""

    name = "lookup_dense_int8"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        return column_words(signs)

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        rows, columns = workload.product.unique_rows, workload.product.geometry.n
        full, rest = divmod(columns, WORD_COLUMNS)
        last = -(-rest // tables.COLUMNS)
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            x = T.arg("x", T.Buffer((1, columns), "int8"))
            words = T.arg("words", T.Buffer((full + (rest > 0), rows), "uint32"))
            dots = T.arg("dots", T.Buffer((1, rows, 1), "int32"))
            table = T.alloc_buffer((WORD_TABLES * tables.ENTRIES,), "uint16")

            def value(column, inside=True):
                if not inside:
                    return T.int32(0)
                return x[0, column].astype("int32") - workload.zero_point

            def add(word, count):
                with T.serial(0, rows) as row:
                    held = T.alloc_buffer((1,), "uint32")
                    total = T.alloc_buffer((1,), "int32")
                    T.buffer_store(held, words[word, row], [0])
                    T.buffer_store(total, dots[0, row, 0], [0])
                    for entry in tables.looked_up(table, held[0], count, "int8"):
                        T.buffer_store(total, total[0] + entry, [0])
                    T.buffer_store(dots, total[0], [0, row, 0])

            with T.serial(0, rows) as row:
                lookups = full * WORD_TABLES + last
                T.buffer_store(dots, tables.start("int8", lookups), [0, row, 0])
            if full:
                with T.serial(0, full) as word:
                    with T.serial(0, WORD_TABLES) as t:
                        first = word * WORD_COLUMNS + t * tables.COLUMNS
                        values = [value(first + c) for c in range(tables.COLUMNS)]
                        tables.fill(table, t * tables.ENTRIES, values, "int8")
                    add(word, WORD_TABLES)
            if rest:
                for t in range(last):
                    first = full * WORD_COLUMNS + t * tables.COLUMNS
                    columns_here = range(first, first + tables.COLUMNS)
                    values = [value(c, c < columns) for c in columns_here]
                    tables.fill(table, t * tables.ENTRIES, values, "int8")
                add(full, last)
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
