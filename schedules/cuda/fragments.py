"""The weight layout of the tensor-core kernels: a 32-bit word a lane is the lane's own operand.

The matrix of unique sign rows is cut into tiles of 16 rows by 64 columns. Of such a tile each of
a warp's 32 lanes holds 32 bits: its four registers of four ``m16n8k16`` products. Which column
is which is ours to choose as long as activations follow. Kernels that load activations themselves
give lane ``t`` of four 16 neighbours (``NEIGHBOURS``): it reads them in two 16-byte loads, with no
shuffle. Where the hardware reads them from shared memory, columns stay in order (``NATURAL``).
"""

from __future__ import annotations

import numpy as np

TILE_ROWS = 16
TILE_COLUMNS = 64
LANES = 32

NEIGHBOURS = "neighbours"
NATURAL = "natural"


def tile_counts(rows: int, columns: int) -> tuple[int, int]:
    """Tiles along rows and along columns."""
    return -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)


def fragment_words(signs: np.ndarray, order: str = NEIGHBOURS) -> np.ndarray:
    """Lay sign rows out for the tensor cores.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(..., rows, columns)``: true for +1.
    order : str
        ``NEIGHBOURS`` or ``NATURAL``.

    Returns
    -------
    numpy.ndarray
        uint32, shape ``(..., row tiles, column tiles, 32)``. Lane ``4 * g + t`` holds rows ``g``
        and ``g + 8`` of its tile: bit ``4 * s + j`` is the first and bit ``4 * s + j + 16`` the
        second value of register ``j`` of product ``s``: row ``g + 8 * (j % 2)`` and, of the
        tile's columns, ``16 * t + 4 * s + 2 * (j // 2)`` and the next (``NEIGHBOURS``), or
        ``16 * s + 8 * (j // 2) + 2 * t`` and the next (``NATURAL``). Rows and columns past the end
        are clear.
    """
    *lead, rows, columns = signs.shape
    row_tiles, column_tiles = tile_counts(rows, columns)
    padded = np.zeros((*lead, row_tiles * TILE_ROWS, column_tiles * TILE_COLUMNS), dtype=bool)
    padded[..., :rows, :columns] = signs
    # Axes: row tile, j % 2, g, column tile, then the 64 columns from the slowest part to the
    # fastest. Wanted: row tile, column tile, g, t, value, s, j // 2, j % 2.
    if order == NEIGHBOURS:
        parts, wanted = (4, 4, 2, 2), [0, 3, 2, 4, 7, 5, 6, 1]  # t, s, j // 2, value
    else:
        parts, wanted = (4, 2, 4, 2), [0, 3, 2, 6, 7, 4, 5, 1]  # s, j // 2, t, value
    split = padded.reshape(*lead, row_tiles, 2, 8, column_tiles, *parts)
    moved = split.transpose(*range(len(lead)), *(len(lead) + axis for axis in wanted))
    bits = moved.reshape(*lead, row_tiles, column_tiles, LANES, 32)
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return packed.view("<u4")[..., 0].astype(np.uint32)
