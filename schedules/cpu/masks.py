"""Dot products of stretches of the input with stretches of the tile, signs as lane masks.

Where alpha changes inside a row, each piece of constant alpha is an *item*: a contiguous stretch
of the input times a contiguous stretch of the tile that starts anywhere. Its bits are laid out from
the item's own start, a bit plane a vector: bit ``b`` of lane ``l``'s word is the sign of element
``b * LANES + l``. So a vector of sign masks costs a shift by the same amount in all lanes, which
every instruction set has, and applying it flips the sign bit of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.reference import Product
from tbn_tvm.tiling import unpack_bits

LANES = 16
"""Elements in a vector; narrower instruction sets use several registers for one."""

PLANES = 32
CHUNK = LANES * PLANES
"""Elements that a vector of words covers."""

FIELDS = 5
"""Words of an item's description: row, segment, start, length and where its bits begin."""

SIGN = 0x80000000


@dataclass(frozen=True)
class Item:
    """A piece of a unique row with one alpha.

    Attributes
    ----------
    row, segment : int
        Where its dot product goes.
    start, length : int
        The stretch of the input; ``length`` 0 for segments that the row does not have.
    phase : int
        Where in the tile it begins.
    """

    row: int
    segment: int
    start: int
    length: int
    phase: int


def items_of_row(product: Product, row: int) -> list[Item]:
    """The pieces of a unique row, missing ones included."""
    n, q = product.geometry.n, product.geometry.q
    phase = row * n % q
    if product.segments == 1:
        return [Item(row, 0, 0, n, phase)]
    items = []
    for segment in range(product.segments):
        start = max(segment * q - phase, 0)
        stop = min((segment + 1) * q - phase, n)
        items.append(Item(row, segment, start, max(stop - start, 0), (phase + start) % q))
    return items


def all_items(product: Product) -> list[Item]:
    """The pieces of every unique row."""
    return [item for row in range(product.unique_rows) for item in items_of_row(product, row)]


def split_items(product: Product) -> list[Item]:
    """The pieces of the unique rows that have more than one."""
    if product.segments == 1:
        return []
    rows = (items_of_row(product, row) for row in range(product.unique_rows))
    return [item for row in rows if sum(i.length > 0 for i in row) > 1 for item in row]


def _stretches(items: list[Item]) -> dict[tuple[int, int], int]:
    """Where the bits of each stretch ``(phase, length)`` begin, past the descriptions."""
    offsets, at = {}, len(items) * FIELDS
    for item in items:
        key = item.phase, item.length
        if key not in offsets:
            offsets[key] = at
            at += -(-item.length // CHUNK) * LANES
    return offsets


def item_words_size(product: Product, items: list[Item]) -> int:
    """Words that :func:`item_words` makes."""
    chunks = sum(-(-length // CHUNK) for _, length in _stretches(items))
    return len(items) * FIELDS + chunks * LANES


def item_words(tile: np.ndarray, product: Product, items: list[Item]) -> np.ndarray:
    """Lay items out for :func:`emit`.

    Returns
    -------
    numpy.ndarray
        uint32, one-dimensional: :data:`FIELDS` words an item, then the bits of each different
        stretch, set where the sign is -1.
    """
    bits = unpack_bits(tile, product.geometry.q)
    offsets = _stretches(items)
    head = [
        (item.row, item.segment, item.start, item.length, offsets[item.phase, item.length])
        for item in items
    ]
    parts = [np.array(head, dtype=np.uint32).reshape(-1)]
    for phase, length in offsets:
        chunks = -(-length // CHUNK)
        negative = np.zeros(chunks * CHUNK, dtype=bool)
        negative[:length] = ~bits[(phase + np.arange(length)) % bits.size]
        planes = negative.reshape(chunks, PLANES, LANES).transpose(0, 2, 1)
        packed = np.packbits(np.ascontiguousarray(planes), axis=2, bitorder="little")
        parts.append(packed.view("<u4").astype(np.uint32).reshape(-1))
    return np.concatenate(parts)


def emit(x, words, dots, sample, count: int, base: int) -> None:
    """Write the loop over the items of one sample.

    Parameters
    ----------
    x, words, dots : Buffer
        ``(samples, n)``; uint32, one-dimensional; float32 ``(samples, rows, segments)``.
    sample : expression
        Which.
    count, base : int
        Number of items, and where their words begin.
    """
    with T.serial(0, count) as number:
        emit_item(x, words, dots, sample, number, base)


def emit_item(x, words, dots, sample, number, base: int) -> None:
    """Write the dot product of one item; see :func:`emit`."""
    ramp = T.ramp(0, 1, LANES)
    sums = T.alloc_buffer((4, LANES), "float32")
    total = T.alloc_buffer((1,), "float32")
    row, segment, start, length, offset = (
        T.bind(words[base + number * FIELDS + field].astype("int32")) for field in range(FIELDS)
    )
    bits = T.bind(base + offset)
    vectors = T.bind(length // LANES)

    def signed(index, word, plane, lanes):
        """Elements from ``index`` on, times the signs of a plane."""
        shift = (PLANES - 1 - plane).astype("uint32") if _dynamic(plane) else PLANES - 1 - plane
        mask, flag = tir.const(SIGN, "uint32"), _constant(shift)
        if lanes == 1:
            value = x[sample, index].astype("float32")
        else:
            mask, flag = T.broadcast(mask, lanes), T.broadcast(flag, lanes)
            value = x[sample, T.ramp(index, 1, lanes)].astype(f"float32x{lanes}")
        unsigned, floating = (f"{t}x{lanes}" if lanes > 1 else t for t in ("uint32", "float32"))
        sign = tir.bitwise_and(tir.shift_left(word, flag), mask)
        return T.reinterpret(floating, tir.bitwise_xor(T.reinterpret(unsigned, value), sign))

    def add(sum_, value) -> None:
        T.buffer_store(sums, sums[sum_, ramp] + value, [sum_, ramp])

    with T.unroll(0, 4) as i:
        T.buffer_store(sums, T.broadcast(T.float32(0), LANES), [i, ramp])
    whole = T.bind(length // CHUNK)
    with T.serial(0, whole) as chunk:
        word = words[T.ramp(bits + chunk * LANES, 1, LANES)]
        for plane in range(PLANES):
            at = start + chunk * CHUNK + plane * LANES
            add(plane % 4, signed(at, word, plane, LANES))
    with T.serial(0, vectors - whole * PLANES) as plane:
        word = words[T.ramp(bits + whole * LANES, 1, LANES)]
        add(0, signed(start + (whole * PLANES + plane) * LANES, word, plane, LANES))
    T.buffer_store(total, T.float32(0), [0])
    with T.serial(0, length - vectors * LANES) as lane:
        word = words[bits + whole * LANES + lane]
        value = signed(start + vectors * LANES + lane, word, vectors - whole * PLANES, 1)
        T.buffer_store(total, total[0] + value, [0])
    for i in range(1, 4):
        add(0, sums[i, ramp])
    half = LANES // 2
    while half:
        low, high = (T.ramp(s, 1, half) if half > 1 else s for s in (0, half))
        T.buffer_store(sums, sums[0, low] + sums[0, high], [0, low])
        half //= 2
    T.buffer_store(dots, total[0] + sums[0, 0], [sample, row, segment])


def _dynamic(value) -> bool:
    return not isinstance(value, int)


def _constant(value):
    return tir.const(value, "uint32") if isinstance(value, int) else value
