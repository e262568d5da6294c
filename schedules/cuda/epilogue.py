"""How kernels turn dot products of unique rows into the scaled copies that are the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda.build import store, when
from tbn_tvm.schedules.fused import Operands
from tbn_tvm.schedules.reference import AlphaLayout, Product
from tbn_tvm.schedules.rules import Workload

UNROLLED_COPIES = 8
"""Up to so many copies are written out; more are a loop."""

WIDEST_STORE = 16
"""Bytes."""


def copies_of(product: Product) -> int:
    """Outputs of a group that a unique row serves, at most."""
    return -(-product.group_rows // product.unique_rows)


def vector_width(workload: Workload) -> int:
    """Neighbouring outputs that one store may write: rows of every copy are aligned to it."""
    size = 4 if workload.dtype == "float32" else 2
    whole = math.gcd(workload.product.unique_rows, workload.product.geometry.m)
    return math.gcd(whole, WIDEST_STORE // size)


def each_copy(product: Product) -> Iterator:
    """The numbers of a unique row's copies: written out where few, a loop otherwise."""
    copies = copies_of(product)
    if copies <= UNROLLED_COPIES:
        yield from range(copies)
    else:
        with T.serial(0, copies) as copy:
            yield copy


def output(io: Operands, workload: Workload, dot, row, copy=None):
    """The product's output of a row in float32: ``alpha * dot + bias``.

    ``copy`` is the number of the copy where it is known; it is the number of the alpha then.
    """
    product = workload.product
    index = product.alpha_index(row, 0)
    if product.alpha_layout is AlphaLayout.TILE and copy is not None and product.groups == 1:
        index = copy
    value = dot * io.alpha[index].astype("float32")
    return value if io.bias is None else value + io.bias[row].astype("float32")


def copy_floats(to, first: int, source, indices, count: int) -> None:
    """Copy neighbouring float32 in loads as wide as TVM has them: four at a time."""
    *lead, last = indices
    for start in range(0, count, 4):
        wide = min(4, count - start)
        if wide == 1 or wide == 3:
            for i in range(wide):
                store(to, source[(*lead, last + start + i)], first + start + i)
            continue
        with T.vectorized(0, wide) as lane:
            store(to, source[(*lead, last + start + lane)], first + start + lane)


def store_copies(
    io: Operands,
    workload: Workload,
    sample,
    row,
    dot: Callable,
    vector: int = 1,
) -> None:
    """Store the outputs of ``vector`` neighbouring unique rows of a dense product's sample.

    Parameters
    ----------
    io, workload
        The kernel's.
    sample : Expr
        Number of the input vector; the caller has checked it.
    row : Expr
        The first unique row; the caller has checked that all exist.
    dot : callable
        ``lane -> float32``: the dot product of unique row ``row + lane``.
    vector : int
        Divides :func:`vector_width`.
    """
    product = workload.product
    lead = io.lead_indices(sample)
    # Through registers of the output's type: TVM has no vectors of eight float32.
    packed = T.alloc_buffer((vector,), str(io.y.dtype), scope="local") if vector > 1 else None
    for copy in each_copy(product):
        first = copy * product.unique_rows + row

        def write(first=first, copy=copy):
            if vector == 1:
                value = output(io, workload, dot(0), first, copy)
                store(io.y, io.finish(value, [*lead, first]), *lead, first)
                return
            for lane in range(vector):
                value = output(io, workload, dot(lane), first + lane, copy)
                store(packed, io.finish(value, [*lead, first + lane]), lane)
            with T.vectorized(0, vector) as lane:
                store(io.y, packed[lane], *lead, first + lane)

        if product.group_rows % product.unique_rows == 0:
            write()
        else:
            with when(first < product.geometry.m):
                write()
