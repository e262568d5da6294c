"""Integers for real numbers, and fixed-point multipliers that cannot overflow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbn_tvm.quantize.scheme import FixedPoint, Scheme, Tensor

REALS = st.floats(-1e4, 1e4, allow_nan=False, width=32)


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("dtype", ["int8", "int16"])
@given(low=REALS, high=REALS)
def test_what_is_in_the_range_comes_back_to_half_a_step(scheme, dtype, low, high):
    low, high = sorted((low, high))
    tensor = Tensor.covering(low, high, scheme, dtype)
    values = np.linspace(min(low, 0), max(high, 0), 33)
    back = tensor.dequantize(tensor.quantize(values))
    # A zero point is rounded, too: the ends may be off by another half.
    assert np.abs(back - values).max() <= tensor.scale * 1.01 + 1e-6 * np.abs(values).max()
    assert tensor.dequantize(tensor.quantize(np.zeros(1)))[0] == 0


def test_symmetric_tensors_have_their_zero_at_zero():
    assert Tensor.covering(0, 5, Scheme.SYMMETRIC).zero_point == 0
    assert Tensor.covering(0, 5, Scheme.AFFINE).zero_point == -128


@given(st.data())
def test_fixed_point_never_overflows_and_is_as_fine_as_16_bits_allow(data):
    count = data.draw(st.integers(1, 8))
    factors = np.array(data.draw(st.lists(st.floats(-2, 2), min_size=count, max_size=count)))
    offsets = np.array([data.draw(st.floats(-3e4, 3e4))])
    bound = data.draw(st.integers(1, 300_000))
    # What reaches an output fits its dtype, or would be clamped anyway.
    factors = factors * (4e4 / max(np.abs(factors).max() * bound, 4e4))
    fixed = FixedPoint.of(factors, offsets, bound)
    assert fixed.multipliers.dtype == np.int16
    for sign in (-1, 1):
        extremes = sign * bound * fixed.multipliers.astype(np.int64) + fixed.offsets
        assert np.abs(extremes).max() < 2**31
    exact = factors * bound + offsets
    made = (fixed.multipliers.astype(np.int64) * bound + fixed.offsets) / 2.0**fixed.shift
    # Half a step of rounding is in the offset; each multiplier is off by half of its own.
    assert np.abs(made - 0.5 - exact).max() <= 0.5 * bound / 2.0**fixed.shift + 1


@pytest.mark.parametrize("factor", [1e5, -1e9, 1e12])
def test_steps_next_to_nothing_saturate_and_do_not_overflow(factor):
    """As of a layer that calibration never saw above 0."""
    bound = 200_000
    fixed = FixedPoint.of(np.array([factor]), np.array([3e11]), bound)
    (multiplier,) = fixed.multipliers.astype(int)
    assert abs(bound * multiplier) + abs(int(fixed.offsets[0])) < 2**31
    assert np.sign(multiplier) == np.sign(factor)
    assert (int(fixed.offsets[0]) >> fixed.shift) > 127
