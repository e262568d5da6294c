"""Weight layouts: every sign in its place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbn_tvm.schedules.layouts import sign_rows, taps_first
from tbn_tvm.schedules.reference import Product
from tbn_tvm.tiling import TiledTensor


@given(st.data())
def test_sign_rows_are_the_unique_rows_of_the_expansion(data):
    groups = data.draw(st.sampled_from([1, 2, 3]))
    m, n = groups * data.draw(st.integers(1, 6)), data.draw(st.integers(1, 12))
    p = data.draw(st.sampled_from([p for p in range(1, m * n + 1) if m * n % p == 0]))
    signs = np.random.default_rng(0).choice([-1, 1], m * n // p)
    weight = TiledTensor.from_signs(signs, [1.0], (m, n))
    product = Product(weight.geometry, 1, groups)
    rows = sign_rows(weight.tile, product)
    assert rows.shape == (groups, product.unique_rows, n)
    dense = weight.expand().reshape(groups, m // groups, n) > 0
    for row in range(m // groups):
        np.testing.assert_array_equal(rows[:, row % product.unique_rows], dense[:, row])


@pytest.mark.parametrize(("channels", "taps"), [(1, 9), (5, 4), (16, 1)])
def test_taps_first_moves_channels_last(channels, taps):
    rows = np.arange(2 * channels * taps).reshape(2, channels * taps)
    moved = taps_first(rows, taps)
    for channel in range(channels):
        for tap in range(taps):
            column = moved[:, tap * channels + channel]
            np.testing.assert_array_equal(column, rows[:, channel * taps + tap])
