"""Rows of a product as stretches of the tile, for kernels that read the tile as it is stored.

A row is cut wherever a use of the tile ends. The first piece starts inside the tile, all others at
its first bit. Where alphas change there too, each piece has a dot product of its own.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.reference import Product

WORD = 32


def tile_words(tile: np.ndarray) -> np.ndarray:
    """The tile in words, with one more behind the last: so words that start anywhere can be read.

    Parameters
    ----------
    tile : numpy.ndarray
        uint8, packed, its unused bits clear.

    Returns
    -------
    numpy.ndarray
        uint32: bit ``k`` of the tile is bit ``k % 32`` of word ``k // 32``.
    """
    padded = np.zeros((-(-tile.size // 4) + 1) * 4, dtype=np.uint8)
    padded[: tile.size] = tile
    return padded.view("<u4").astype(np.uint32)


def words_size(product: Product) -> int:
    """How many words :func:`tile_words` makes."""
    return -(-product.geometry.q // WORD) + 1


def word_at(words, position, aligned: bool):
    """32 bits of the tile from a position on.

    Parameters
    ----------
    words : Buffer
        From :func:`tile_words`.
    position : Expr
        int32.
    aligned : bool
        Whether it is a multiple of 32 always.
    """
    index = position // WORD
    if aligned:
        return words[index]
    shift = (position % WORD).astype("uint32")
    upper = tir.shift_left(words[index + 1], T.uint32(1))  # a shift by 32 is undefined
    return tir.bitwise_or(words[index] >> shift, tir.shift_left(upper, T.uint32(31) - shift))


def always_aligned(product: Product) -> bool:
    """Whether all rows and pieces start at whole words of the tile."""
    return math.gcd(product.geometry.n, product.geometry.q) % WORD == 0


def bit_at(words, position):
    """A bit of the tile as a condition."""
    word = words[position // WORD]
    bit = tir.bitwise_and(word >> (position % WORD).astype("uint32"), T.uint32(1))
    return bit != T.uint32(0)
