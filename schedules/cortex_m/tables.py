"""Tables of the 16 signed sums of four activations, for the bare-metal lookup kernels.

Of float32 an entry is a float32. Of int8 it is 16 bits, raised by :data:`RAISE` so that it is
never negative: then two neighbouring entries are one 32-bit integer, an addition makes both and a
store writes both, on every core, and what sums are too large by is known beforehand.
"""

from __future__ import annotations

from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

COLUMNS = 4
ENTRIES = 16
RAISE = 1024
"""More than four int8 less their zero point can sum to."""

STORE_PAIR = "tbn_store_pair"
"""C function that writes two 16-bit entries at once; the model's source defines it."""

PUT_PAIR, LOAD_PAIR = "tbn_put_pair", "tbn_load_pair"
"""C functions that write and read two 16-bit entries at any even address."""

PAIR_FUNCTIONS = (STORE_PAIR, PUT_PAIR, LOAD_PAIR)

PAIR = 0x10001
"""The same number in both halves of a word."""


def dtypes(activations: str) -> tuple[str, str]:
    """Dtypes of tables and of sums for a dtype of activations."""
    return ("float32", "float32") if activations == "float32" else ("uint16", "int32")


def start(activations: str, lookups: int):
    """What a sum of so many entries starts from."""
    if activations == "float32":
        return T.float32(0)
    return T.int32(-RAISE * lookups)


def zero(activations: str):
    """The entry for activations of zero."""
    return T.float32(0) if activations == "float32" else tir.const(RAISE, "uint16")


def fill(table, at, values: list, activations: str) -> None:
    """Write the table of four activations.

    Parameters
    ----------
    table : Buffer
        Of the table's dtype, one-dimensional.
    at : Expr
        Where its 16 entries begin; a multiple of 16.
    values : list of Expr
        Four float32, or four int32 less the zero point. Bit ``b`` of an entry's number is set
        where activation ``b`` counts positively.
    activations : str
        Their dtype.
    """
    (_fill_float if activations == "float32" else _fill_pairs)(table, at, values)


def _fill_float(table, at, values) -> None:
    sums = _half_sums(values)
    for entry in range(ENTRIES):
        T.buffer_store(table, sums[entry % 4] + sums[4 + entry // 4], [at + entry])


def _half_sums(values):
    """Signed sums of activations {0, 1} and of {2, 3}; an entry is one of each."""
    held = T.alloc_buffer((COLUMNS,), "float32")
    sums = T.alloc_buffer((8,), "float32")
    for c, value in enumerate(values):
        T.buffer_store(held, value, [c])
    for half in range(2):
        a, b = held[2 * half], held[2 * half + 1]
        for pattern, total in ((3, a + b), (1, a - b), (2, b - a), (0, -(a + b))):
            T.buffer_store(sums, total, [4 * half + pattern])
    return sums


def _fill_pairs(table, at, values) -> None:
    doubled = T.alloc_buffer((3,), "int32")
    pair = T.alloc_buffer((1,), "int32")
    first, *others = values
    for c, value in enumerate(others):
        T.buffer_store(doubled, value * T.int32(2 * PAIR), [c])
    # Entry 0 subtracts all four, entry 1 adds the first.
    lowest = first * T.int32(0xFFFF) + T.int32(RAISE * PAIR)
    for c in range(3):
        lowest = lowest - tir.shift_right(doubled[c], T.int32(1))
    T.buffer_store(pair, lowest, [0])
    order, position = [0, 1, 3, 2, 6, 7, 5, 4], 0  # neighbours differ in one bit
    for number in order:
        changed = number ^ position
        if changed:
            step = doubled[changed.bit_length() - 1]
            total = pair[0] + step if number & changed else pair[0] - step
            T.buffer_store(pair, total, [0])
        # Of an access pointer, unlike an address, TVM knows that it may reach the whole table.
        address = table.access_ptr("w", offset=at + 2 * number)
        T.evaluate(tir.call_extern("void", STORE_PAIR, address, pair[0].astype("uint32")))
        position = number


def spread(table, at, pitch: int, values: list, pairs: bool) -> None:
    """Write the table of four activations with its entries apart.

    Parameters
    ----------
    table : Buffer
        Of the table's dtype, one-dimensional.
    at : Expr
        Where entry 0 goes; entry ``e`` goes ``e * pitch`` further.
    pitch : int
        As above.
    values : list of Expr
        Four float32, or four int32 less the zero point.
    pairs : bool
        Whether they are the int32 of two pixels, ``a + 65536 * b``, whose entries are neighbours.
    """
    if str(table.dtype) == "float32":
        sums = _half_sums(values)
        for entry in range(ENTRIES):
            value = sums[entry % 4] + sums[4 + entry // 4]
            T.buffer_store(table, value, [at + entry * pitch])
        return
    doubled, total = T.alloc_buffer((COLUMNS,), "int32"), T.alloc_buffer((1,), "int32")
    lowest = T.int32(RAISE * (PAIR if pairs else 1))
    for c, value in enumerate(values):
        T.buffer_store(doubled, value * T.int32(2), [c])
        lowest = lowest - tir.shift_right(doubled[c], T.int32(1))
    T.buffer_store(total, lowest, [0])
    position = 0
    for number in (i ^ i >> 1 for i in range(ENTRIES)):  # neighbours differ in one bit
        changed = number ^ position
        if changed:
            step = doubled[changed.bit_length() - 1]
            T.buffer_store(total, total[0] + step if number & changed else total[0] - step, [0])
        place = at + number * pitch
        if pairs:
            address = table.access_ptr("w", offset=place)
            T.evaluate(tir.call_extern("void", PUT_PAIR, address, total[0].astype("uint32")))
        else:
            T.buffer_store(table, total[0].astype("uint16"), [place])
        position = number


def load_pair(table, at):
    """Two neighbouring 16-bit entries as a uint32."""
    return tir.call_extern("uint32", LOAD_PAIR, T.address_of(table[at]))


def nibble(word, number: int):
    """Four bits of a word as an int32."""
    return _part(word, 4 * number, 15)


def looked_up(table, word, count: int, activations: str) -> list:
    """The entries that the nibbles of a word name, each of its own table.

    Parameters
    ----------
    table : Buffer
        Neighbouring tables; nibble ``t`` belongs to the one at ``16 * t``.
    word : Expr
        uint32; used several times.
    count : int
        Nibbles that mean something, at most 8.
    activations : str
        Their dtype.

    Returns
    -------
    list of Expr
        In the dtype of sums.
    """
    if activations == "float32":
        return [table[t * ENTRIES + _part(word, 4 * t, 15)] for t in range(count)]
    # The indices of four tables at once, a byte each, with their tables' places added.
    halves = []
    for odd in range(2):
        places = sum((2 * byte + odd) * ENTRIES << 8 * byte for byte in range(4))
        nibbles = tir.bitwise_and(word >> T.uint32(4) if odd else word, T.uint32(0x0F0F0F0F))
        held = T.alloc_buffer((1,), "uint32")
        if odd < count:
            T.buffer_store(held, nibbles + T.uint32(places), [0])
        halves.append(held)
    return [table[_part(halves[t % 2][0], 8 * (t // 2), 255)].astype("int32") for t in range(count)]


def _part(word, shift: int, mask: int):
    shifted = word >> T.uint32(shift) if shift else word
    return tir.bitwise_and(shifted, T.uint32(mask)).astype("int32")
