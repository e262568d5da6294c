"""The tiled weight: the one definition of the format (arXiv:2407.12075, section 3).

A weight of shape ``(m, ...)`` with ``N`` elements and compression factor ``p`` is stored as
``q = N / p`` bits, the tile, and one or ``p`` float32 scalars, the alphas::

    W[e] = alpha[e // q] * t[e % q],    t[k] = +1 where bit k is set, -1 where it is clear

``e`` is the flat C-order index. Bit ``k`` is bit ``k % 8`` of byte ``k // 8``. No other module
slices bits; kernels that want another layout get it from a named layout function next to them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Literal

import numpy as np

from tbn_tvm.errors import FormatError


class Alignment(Enum):
    """How the tile falls on the rows of the weight seen as an ``m x n`` matrix."""

    WHOLE_ROWS = "whole rows"
    """``q % n == 0``: rows repeat; only ``q / n`` dot products differ."""

    WHOLE_TILES = "whole tiles"
    """``n % q == 0``: every row is ``n / q`` tiles; the dot products with the tile are shared."""

    RAGGED = "ragged"
    """Neither: a row starts inside a tile and is cut at the multiples of ``q``."""


@dataclass(frozen=True)
class Geometry:
    """The tile's walk over the rows: everything a kernel needs to know but the bits.

    Row ``i`` starts at tile phase ``(i * n) % q``. Phases repeat with period ``q / gcd(q, n)``,
    so rows that share a phase share their signs. Within a row alpha changes at the multiples of
    ``q``: the row is cut into segments, and only segment dot products are ever computed.

    Parameters
    ----------
    m, n : int
        Rows (output features or channels) and elements in a row.
    q : int
        Tile length in bits; divides ``m * n``.
    """

    m: int
    n: int
    q: int

    @property
    def p(self) -> int:
        """How often the tile is used."""
        return self.m * self.n // self.q

    @property
    def alignment(self) -> Alignment:
        """Which of the three cases this is. A tile of exactly one row counts as whole rows."""
        if self.q % self.n == 0:
            return Alignment.WHOLE_ROWS
        if self.n % self.q == 0:
            return Alignment.WHOLE_TILES
        return Alignment.RAGGED

    @property
    def period(self) -> int:
        """Row distance after which the phase repeats."""
        return self.q // math.gcd(self.q, self.n)

    def unique_rows(self, groups: int = 1) -> int:
        """Distinct (sign row, input group) pairs: the rows whose dot products must be computed.

        Rows of different groups read different inputs and share nothing.
        """
        return groups * min(self.m // groups, self.period)

    @property
    def segments(self) -> int:
        """The largest number of constant-alpha segments in a row."""
        return max(
            (i * self.n % self.q + self.n + self.q - 1) // self.q
            for i in range(min(self.m, self.period))
        )


@dataclass(frozen=True, eq=False)
class TiledTensor:
    """A weight stored as tile bits and alphas. A value: immutable, hashable by content.

    Parameters
    ----------
    tile : numpy.ndarray
        uint8, shape ``(ceil(q / 8),)``: the packed bits, unused high bits of the last byte zero.
    alphas : numpy.ndarray
        float32, shape ``(p,)`` (one for each use of the tile) or ``(1,)`` (one for the layer).
    shape : tuple of int
        Shape of the weight, output features or channels first.
    p : int
        How often the tile is used; divides the number of elements.

    Raises
    ------
    FormatError
        Where the parts contradict one another or an alpha is not finite.
    """

    tile: np.ndarray
    alphas: np.ndarray
    shape: tuple[int, ...]
    p: int

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if not shape or not all(_is_count(extent) for extent in shape):
            raise FormatError(f"shape {shape} is not that of a weight: give positive extents")
        if not _is_count(self.p):
            raise FormatError(f"p = {self.p!r}: expected a whole number of at least 1")
        shape = tuple(int(extent) for extent in shape)
        elements = math.prod(shape)
        if elements % self.p:
            raise FormatError(
                f"p = {self.p} does not divide the {elements} elements of shape {shape}, so the "
                f"tile length q = {elements / self.p:.4g} is not a whole number; choose a "
                f"divisor, for example {largest_divisor(elements, int(self.p))}"
            )
        length = elements // int(self.p)
        tile = np.asarray(self.tile)
        if tile.dtype != np.uint8 or tile.ndim != 1:
            raise FormatError(
                f"tile has dtype {tile.dtype} and {tile.ndim} dimension(s): expected a flat "
                "uint8 array of packed bits (see tbn_tvm.tiling.pack_bits)"
            )
        if tile.size != (length + 7) // 8:
            raise FormatError(
                f"tile has {tile.size} byte(s): expected {(length + 7) // 8} for q = {length} "
                f"bits (shape {shape}, p = {self.p})"
            )
        if length % 8 and tile[-1] >> (length % 8):
            raise FormatError(
                f"tile has bits set beyond its length q = {length}: the last byte's high "
                f"{8 - length % 8} bit(s) must be zero"
            )
        alphas = np.asarray(self.alphas)
        if alphas.ndim != 1 or alphas.size not in (1, self.p):
            raise FormatError(
                f"alphas have shape {alphas.shape}: expected (1,) for one alpha a layer or "
                f"({self.p},) for one a tile"
            )
        if not np.issubdtype(alphas.dtype, np.floating):
            raise FormatError(f"alphas have dtype {alphas.dtype}: expected float32")
        with np.errstate(over="ignore"):
            alphas = alphas.astype(np.float32)
        if not np.isfinite(alphas).all():
            where = int(np.flatnonzero(~np.isfinite(alphas))[0])
            raise FormatError(
                f"alpha {where} is {alphas[where]}: every alpha must be a finite float32; the "
                "model was probably trained to divergence"
            )
        for name, value in (
            ("tile", _frozen(tile)),
            ("alphas", _frozen(alphas)),
            ("shape", shape),
            ("p", int(self.p)),
        ):
            object.__setattr__(self, name, value)

    # -- construction -----------------------------------------------------------------------

    @classmethod
    def from_signs(
        cls, signs: np.ndarray, alphas: np.ndarray | Sequence[float], shape: Sequence[int]
    ) -> TiledTensor:
        """Build from the tile's signs.

        Parameters
        ----------
        signs : numpy.ndarray
            Shape ``(q,)``; positive means +1, anything else -1.
        alphas : array_like
            One or ``p = prod(shape) / q`` floats.
        shape : sequence of int
            Shape of the weight.
        """
        signs = np.asarray(signs).reshape(-1)
        elements = math.prod(int(extent) for extent in shape)
        if signs.size == 0 or elements % signs.size:
            raise FormatError(
                f"a tile of {signs.size} signs does not fill shape {tuple(shape)} "
                f"({elements} elements) a whole number of times"
            )
        return cls(
            pack_bits(signs > 0),
            np.asarray(alphas, dtype=np.float32).reshape(-1),
            tuple(shape),
            elements // signs.size,
        )

    @classmethod
    def from_dense(
        cls,
        array: np.ndarray,
        *,
        rtol: float | None = None,
        minimise: Literal["tile", "bytes"] = "tile",
    ) -> TiledTensor | None:
        """Find the tile of a dense array that is tiled exactly.

        Exactly means: signs repeat to the letter, and magnitudes are constant in each use of the
        tile up to float rounding. Where alpha is zero signs do not matter. Alphas are not
        negative, as in the paper; only where no such tiling exists are tiles of two and more bits
        tried with alphas of both signs.

        Parameters
        ----------
        array : numpy.ndarray
            float16, float32 or float64, shape ``(m, ...)``.
        rtol : float, optional
            Largest relative difference between magnitudes within one use of the tile. The
            default is four units in the last place of the array's dtype (of float32 for
            float64, since alphas are stored in float32).
        minimise : {"tile", "bytes"}
            The smallest tile, or the smallest stored size: a short tile used often needs more
            alphas, so the two can differ.

        Returns
        -------
        TiledTensor or None
            None where no tile reproduces the array.
        """
        array = np.asarray(array)
        if not np.issubdtype(array.dtype, np.floating):
            raise FormatError(f"array has dtype {array.dtype}: expected a floating-point weight")
        if array.size == 0 or array.ndim == 0:
            raise FormatError(f"array of shape {array.shape} is not a weight")
        if rtol is None:
            rtol = 4 * max(np.finfo(array.dtype).eps, np.finfo(np.float32).eps)
        for signed in (False, True):
            found = _exact_tilings(array, float(rtol), signed)
            if minimise == "tile":
                best = next(found, None)
            else:
                best = min(found, key=lambda tiled: tiled.nbytes, default=None)
            if best is not None:
                return best
        return None

    # -- content ----------------------------------------------------------------------------

    @property
    def q(self) -> int:
        """Tile length in bits."""
        return math.prod(self.shape) // self.p

    @property
    def m(self) -> int:
        """Rows: output features or channels."""
        return self.shape[0]

    @property
    def n(self) -> int:
        """Elements in a row."""
        return math.prod(self.shape[1:])

    @property
    def geometry(self) -> Geometry:
        """The tile's walk over the rows."""
        return Geometry(self.m, self.n, self.q)

    @property
    def alignment(self) -> Alignment:
        """Which of the three alignment cases this is."""
        return self.geometry.alignment

    def signs(self) -> np.ndarray:
        """The tile as int8 of shape ``(q,)``, each entry +1 or -1."""
        return (2 * unpack_bits(self.tile, self.q).astype(np.int8) - 1).astype(np.int8)

    def expand(self, dtype: np.dtype | type = np.float32) -> np.ndarray:
        """The dense weight, of the tensor's shape. For tests and for float targets only."""
        alphas = np.broadcast_to(self.alphas.astype(dtype), (self.p,))
        return (alphas[:, None] * self.signs().astype(dtype)[None, :]).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes stored: the packed tile and the float32 alphas."""
        return int(self.tile.nbytes + self.alphas.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each weight, alphas included as 32 bits each."""
        return (self.q + 32 * self.alphas.size) / math.prod(self.shape)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        header = f"{self.shape}:{self.p}:{self.alphas.size}:".encode()
        return hashlib.sha256(header + self.tile.tobytes() + self.alphas.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TiledTensor) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"TiledTensor(shape={self.shape}, p={self.p}, q={self.q}, "
            f"alphas={self.alphas.size}, {self.alignment.value}, {self.nbytes} bytes)"
        )


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """Pack booleans, shape ``(k,)``, into uint8 of shape ``(ceil(k / 8),)``, element 0 lowest."""
    return np.packbits(np.asarray(bits, dtype=bool).reshape(-1), bitorder="little")


def unpack_bits(packed: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` bits of packed uint8 as booleans of shape ``(count,)``."""
    return np.unpackbits(packed, count=count, bitorder="little").astype(bool)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit`` (at least 1)."""
    return max(d for d in _divisors(number) if d <= max(1, limit))


def _is_count(value) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1


def _divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _frozen(array: np.ndarray) -> np.ndarray:
    copy = np.array(array, copy=True)
    copy.setflags(write=False)
    return copy


def _exact_tilings(array: np.ndarray, rtol: float, signed: bool) -> Iterator[TiledTensor]:
    """Every way the array is tiled, by ascending tile length.

    Signed alphas are meant to be a last resort: with them every array is "tiled" by single bits,
    so those are left out.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if not np.isfinite(flat).all():
        return
    magnitudes = np.abs(flat)
    # No tile is longer than the first run of equal magnitudes. This one look rejects ordinary
    # float weights at once; twice the tolerance keeps it a necessary condition.
    differs = np.abs(magnitudes - magnitudes[0]) > 2 * rtol * float(magnitudes[0])
    longest = int(np.argmax(differs)) if differs.any() else flat.size
    for length in _divisors(flat.size):
        if length > longest:
            return
        blocks = magnitudes.reshape(-1, length)
        low, high = blocks.min(axis=1), blocks.max(axis=1)
        if (high.astype(np.float64) - low > rtol * high.astype(np.float64)).any():
            continue
        if signed and length == 1:
            continue
        signs, negative = _common_signs(flat.reshape(-1, length), high > 0)
        if signs is None or (negative.any() and not signed):
            continue
        # The median is one of the values, so an exact alpha survives exactly.
        with np.errstate(over="ignore"):
            alphas = _middle(blocks).astype(np.float32)
        if not np.isfinite(alphas).all():
            continue
        alphas = np.where(negative, -alphas, alphas)
        if float(alphas.max()) - float(alphas.min()) <= rtol * float(alphas.max()):
            alphas = np.sort(alphas)[alphas.size // 2 : alphas.size // 2 + 1]
        yield TiledTensor.from_signs(signs, alphas, array.shape)


def _common_signs(blocks: np.ndarray, used: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The signs that all used blocks share up to a sign of their own.

    Returns
    -------
    numpy.ndarray or None
        Booleans, a block long; None where blocks differ in more than one sign for all.
    numpy.ndarray
        Booleans, one a block: whether the block has the opposite signs.
    """
    negative = np.zeros(blocks.shape[0], dtype=bool)
    if not used.any():
        return np.zeros(blocks.shape[1], dtype=bool), negative
    signs = blocks[used] > 0
    negative[used] = signs[:, 0] != signs[0, 0]
    same = ((signs ^ negative[used][:, None]) == signs[0]).all()
    return (signs[0] if same else None), negative


def _middle(blocks: np.ndarray) -> np.ndarray:
    """The upper median of each row: always one of the row's own values."""
    middle = blocks.shape[1] // 2
    return np.partition(blocks, middle, axis=1)[:, middle]
