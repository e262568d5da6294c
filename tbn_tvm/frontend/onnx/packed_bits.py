"""Weights of a few bits as ONNX Runtime's quantiser packs them."""

from __future__ import annotations

import numpy as np

BITS = (2, 4, 8)
"""How many bits a weight may take: those of which whole ones fill a byte."""


def unpacked_weight(
    packed: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    bits: int,
    block: int,
    shape: tuple[int, int],
) -> np.ndarray:
    """Numbers of a weight that is stored by rows, each in blocks of one scale.

    Parameters
    ----------
    packed : numpy.ndarray
        Bytes of shape (rows, blocks, bytes a block), the first weight in the lowest bits.
    scales : numpy.ndarray
        One a block, in the order of the blocks.
    zeros : numpy.ndarray, optional
        Likewise, as numbers of the type of the scales or packed, each row from a new byte;
        half of the range where left out.
    bits, block : int
        Bits a weight, and weights a block.
    shape : tuple of int
        Rows and columns; the last block of a row may be filled up.

    Returns
    -------
    numpy.ndarray
        Of the type of the scales.

    Raises
    ------
    ValueError
        Where these are of other shapes or types.
    """
    rows, columns = shape
    if bits not in BITS:
        raise ValueError(f"weights of {bits} bits: expected {', '.join(map(str, BITS))}")
    if rows < 1 or columns < 1 or block < 1 or block * bits % 8:
        raise ValueError(f"blocks of {block} of {rows} rows of {columns}")
    count = -(-columns // block)
    if packed.dtype != np.uint8 or packed.shape != (rows, count, block * bits // 8):
        raise ValueError(
            f"B is {packed.dtype} {packed.shape}: expected uint8 {(rows, count, block * bits // 8)}"
        )
    if scales.dtype.kind != "f" or scales.size != rows * count:
        raise ValueError(f"{scales.size} scales of {scales.dtype}: expected {rows * count}")
    scales = scales.reshape(rows, count, 1)
    if zeros is None:
        shift = np.full((1, 1, 1), 2 ** (bits - 1), scales.dtype)
    elif zeros.dtype == np.uint8 and zeros.size == rows * -(-count * bits // 8):
        shift = _numbers(zeros.reshape(rows, -1), bits)[:, :count, None]
    elif zeros.dtype == scales.dtype and zeros.size == rows * count:
        shift = zeros.reshape(rows, count, 1)
    else:
        raise ValueError(f"zero_points are {zeros.dtype} {zeros.shape} for {rows * count} blocks")
    held = _numbers(packed, bits).astype(scales.dtype)
    numbers = (held - shift.astype(scales.dtype)) * scales
    return numbers.reshape(rows, count * block)[:, :columns]


def _numbers(packed: np.ndarray, bits: int) -> np.ndarray:
    """Along the last axis, the lowest bits of a byte first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return numbers.reshape(*packed.shape[:-1], -1)
