"""Weight layouts that several kernels share. Each is done once, at compile time."""

from __future__ import annotations

import numpy as np

from tbn_tvm.schedules.reference import Product
from tbn_tvm.tiling import unpack_bits


def sign_rows(tile: np.ndarray, product: Product) -> np.ndarray:
    """The unique sign rows of a product, whatever its alignment.

    Parameters
    ----------
    tile : numpy.ndarray
        uint8, the packed tile.
    product : Product
        With one segment a row: otherwise the alphas of a row differ and the bits alone are no row.

    Returns
    -------
    numpy.ndarray
        bool, shape ``(groups, unique_rows, n)``: true for +1.
    """
    geometry = product.geometry
    bits = unpack_bits(tile, geometry.q)
    rows = np.arange(product.groups)[:, None] * product.group_rows + np.arange(product.unique_rows)
    starts = rows * geometry.n % geometry.q
    if geometry.q % geometry.n == 0:
        return bits.reshape(-1, geometry.n)[starts // geometry.n]
    return bits[(starts[..., None] + np.arange(geometry.n)) % geometry.q]


def taps_first(rows: np.ndarray, taps: int) -> np.ndarray:
    """Reorder columns from channel-major to tap-major.

    Parameters
    ----------
    rows : numpy.ndarray
        Shape ``(..., channels * taps)``.
    taps : int
        Elements of a convolution's window.

    Returns
    -------
    numpy.ndarray
        Shape ``(..., taps * channels)``.
    """
    *lead, columns = rows.shape
    split = rows.reshape(*lead, columns // taps, taps)
    return np.ascontiguousarray(np.swapaxes(split, -1, -2)).reshape(*lead, columns)
