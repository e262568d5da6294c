"""The format: what a TiledTensor means, refuses, measures, and finds in a dense array."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tbn_tvm.errors import FormatError
from tbn_tvm.tiling import (
    Alignment,
    Geometry,
    TiledTensor,
    largest_divisor,
    pack_bits,
    unpack_bits,
)

quick = settings(max_examples=60, deadline=None)

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Far apart, so that no two of them are one alpha up to rounding.
APART = st.sampled_from([0.25, 0.5, 1.0, 3.0])
APART_OR_ZERO = st.sampled_from([0.0, 0.5, 1.0, 3.0])


def divisors(number):
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def tiled_tensors(draw, alpha=FINITE):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    elements = math.prod(shape)
    p = draw(st.sampled_from(divisors(elements)))
    signs = draw(arrays(np.int8, elements // p, elements=st.sampled_from([-1, 1])))
    count = draw(st.sampled_from([1, p]))
    return TiledTensor.from_signs(signs, draw(arrays(np.float32, count, elements=alpha)), shape)


def by_definition(tiled):
    """W[e] = alpha[e // q] * t[e % q], one element after the other."""
    elements = math.prod(tiled.shape)
    q = elements // tiled.p
    flat = []
    for e in range(elements):
        alpha = float(tiled.alphas[e // q if len(tiled.alphas) > 1 else 0])
        byte, bit = divmod(e % q, 8)
        flat.append(alpha if int(tiled.tile[byte]) >> bit & 1 else -alpha)
    return np.array(flat, dtype=np.float64).reshape(tiled.shape)


def is_tiled(dense, q):
    """Whether a dense array is made of a tile of q signs, each use with one magnitude."""
    blocks = dense.reshape(-1, q)
    used = [block for block in blocks if block.any()]
    return all((abs(block) == abs(block[0])).all() for block in blocks) and all(
        (np.sign(block) == np.sign(used[0])).all() for block in used
    )


def random_tiled(shape, alphas, q, seed=0):
    signs = np.random.default_rng(seed).choice([-1, 1], q)
    return TiledTensor.from_signs(signs, alphas, shape)


# -- content --------------------------------------------------------------------------------


@quick
@given(tiled_tensors())
def test_expand_obeys_the_element_formula(tiled):
    expected = by_definition(tiled)
    for dtype in (np.float32, np.float64):
        dense = tiled.expand(dtype)
        assert dense.dtype == dtype
        assert dense.shape == tiled.shape
        assert np.array_equal(dense, expected)


def test_expand_of_a_tile_written_out_by_hand():
    # Bits 0 and 2 set: the tile is + - +.
    tiled = TiledTensor(np.array([0b101], np.uint8), np.array([2, 5], np.float32), (2, 3), 2)
    assert tiled.expand().tolist() == [[2, -2, 2], [5, -5, 5]]
    assert tiled.signs().tolist() == [1, -1, 1]
    assert tiled.signs().dtype == np.int8


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_element_k_is_bit_k_mod_8_of_byte_k_div_8(bits):
    packed = pack_bits(np.array(bits))
    assert packed.dtype == np.uint8
    assert packed.size == math.ceil(len(bits) / 8)
    assert [bool(packed[k // 8] >> (k % 8) & 1) for k in range(len(bits))] == bits
    assert sum(int(byte).bit_count() for byte in packed) == sum(bits)  # padding is zero
    assert unpack_bits(packed, len(bits)).tolist() == bits


def test_from_signs_takes_only_positive_numbers_as_plus():
    tiled = TiledTensor.from_signs(np.array([0.5, 0.0, -3.0, 7.0]), [1], (2, 4))
    assert tiled.signs().tolist() == [1, -1, -1, 1]
    assert (tiled.p, tiled.q) == (2, 4)


def test_size_of_the_papers_layer_784_to_128_at_p_4():
    q = 128 * 784 // 4
    a_tile = random_tiled((128, 784), [1, 2, 3, 4], q)
    a_layer = random_tiled((128, 784), [1], q)
    assert a_tile.nbytes == 3136 + 16
    assert a_layer.nbytes == 3136 + 4
    assert a_tile.bits_per_weight == pytest.approx((25088 + 4 * 32) / 100352)
    assert a_layer.bits_per_weight == pytest.approx((25088 + 32) / 100352)


def test_repr_says_shape_factor_alignment_and_bytes():
    text = repr(random_tiled((128, 784), [1, 2, 3, 4], 25088))
    for part in ("(128, 784)", "p=4", "q=25088", "alphas=4", "whole rows", "3152 bytes"):
        assert part in text


@pytest.mark.parametrize(
    ("number", "limit", "expected"), [(24, 5, 4), (24, 24, 24), (24, 100, 24), (7, 6, 1), (9, 0, 1)]
)
def test_largest_divisor_stays_at_or_below_the_limit(number, limit, expected):
    assert largest_divisor(number, limit) == expected


# -- geometry -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "n", "q", "alignment"),
    [
        (8, 6, 12, Alignment.WHOLE_ROWS),
        (8, 6, 6, Alignment.WHOLE_ROWS),
        (1, 6, 6, Alignment.WHOLE_ROWS),
        (8, 6, 3, Alignment.WHOLE_TILES),
        (8, 6, 1, Alignment.WHOLE_TILES),
        (8, 6, 4, Alignment.RAGGED),
        (8, 6, 16, Alignment.RAGGED),
    ],
)
def test_alignment(m, n, q, alignment):
    assert Geometry(m, n, q).alignment is alignment
    assert random_tiled((m, n), [1], q).alignment is alignment


@st.composite
def geometries(draw):
    m, n = draw(st.integers(1, 10)), draw(st.integers(1, 12))
    q = draw(st.sampled_from(divisors(m * n)))
    return Geometry(m, n, q), draw(st.sampled_from(divisors(m)))


@quick
@given(geometries())
def test_geometry_agrees_with_walking_over_every_element(case):
    geometry, groups = case
    m, n, q = geometry.m, geometry.n, geometry.q
    element = np.arange(m * n).reshape(m, n)
    # A tile whose entries all differ: two rows are equal exactly where their phases are.
    rows, uses = element % q, element // q

    assert geometry.p == uses.max() + 1
    assert geometry.segments == max(len(set(row)) for row in uses.tolist())
    assert geometry.unique_rows() == len(np.unique(rows, axis=0))
    assert geometry.unique_rows(groups) == sum(
        len(np.unique(group, axis=0)) for group in np.split(rows, groups)
    )
    phases = [i * n % q for i in range(q + 1)]
    assert geometry.period == phases.index(0, 1)


@quick
@given(tiled_tensors())
def test_rows_of_the_expanded_signs_repeat_with_the_period(tiled):
    signs = TiledTensor(tiled.tile, np.ones(1, np.float32), tiled.shape, tiled.p).expand()
    rows, geometry = signs.reshape(tiled.m, tiled.n), tiled.geometry
    assert (rows[geometry.period :] == rows[: -geometry.period]).all()
    assert len(np.unique(rows, axis=0)) <= geometry.unique_rows()


def test_whole_row_tiles_leave_m_over_p_rows_to_compute():
    tiled = random_tiled((12, 16), [1, 2, 3], 64)
    assert tiled.geometry.unique_rows() == 12 // 3
    assert len(np.unique(np.sign(tiled.expand()), axis=0)) == 12 // 3


# -- refusals -------------------------------------------------------------------------------

VALID = {
    "tile": np.array([0xFF, 0x0F], np.uint8),
    "alphas": np.array([1, 2], np.float32),
    "shape": (4, 6),
    "p": 2,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"p": 5}, ["p = 5", "24 elements", "(4, 6)", "for example 4"]),
        ({"p": 0}, ["p = 0", "at least 1"]),
        ({"p": -2}, ["p = -2", "at least 1"]),
        ({"p": 1.5}, ["p = 1.5", "whole number"]),
        ({"p": True}, ["p = True", "whole number"]),
        ({"tile": np.zeros(3, np.uint8)}, ["3 byte", "expected 2", "q = 12"]),
        ({"tile": np.zeros(2, np.int8)}, ["int8", "expected a flat uint8"]),
        ({"tile": np.zeros((1, 2), np.uint8)}, ["2 dimension", "expected a flat uint8"]),
        ({"tile": np.array([0, 0x10], np.uint8)}, ["beyond", "q = 12", "4 bit(s) must be zero"]),
        ({"alphas": np.ones(3, np.float32)}, ["(3,)", "expected (1,)", "(2,)"]),
        ({"alphas": np.ones((2, 1), np.float32)}, ["(2, 1)", "expected (1,)"]),
        ({"alphas": np.ones(2, np.int64)}, ["int64", "expected float32"]),
        ({"alphas": np.array([1, np.nan], np.float32)}, ["alpha 1 is nan", "finite"]),
        ({"alphas": np.array([-np.inf, 1], np.float32)}, ["alpha 0 is -inf", "finite"]),
        ({"alphas": np.array([1, 1e39])}, ["alpha 1 is inf", "finite float32"]),
        ({"shape": ()}, ["shape ()", "positive extents"]),
        ({"shape": (4, 0)}, ["shape (4, 0)", "positive extents"]),
        ({"shape": (-4, -6)}, ["shape (-4, -6)", "positive extents"]),
    ],
)
def test_a_contradictory_tensor_is_refused_with_what_was_given_and_expected(change, says):
    TiledTensor(**VALID)
    with pytest.raises(FormatError) as caught:
        TiledTensor(**{**VALID, **change})
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize("count", [0, 5, 25])
def test_from_signs_refuses_a_tile_that_does_not_fill_the_shape(count):
    with pytest.raises(FormatError, match=rf"{count} signs .*\(4, 6\) \(24 elements\)"):
        TiledTensor.from_signs(np.ones(count), [1], (4, 6))


# -- a value --------------------------------------------------------------------------------


def test_a_tiled_tensor_cannot_be_changed():
    given_alphas = np.array([1, 2], np.float32)
    tiled = TiledTensor(**{**VALID, "alphas": given_alphas})
    given_alphas[:] = 9
    assert tiled.alphas.tolist() == [1, 2]
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiled.p = 4
    with pytest.raises(ValueError, match="read-only"):
        tiled.tile[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        tiled.alphas[0] = 0


def test_equal_content_is_equal_and_hashes_alike():
    one, same = TiledTensor(**VALID), TiledTensor(**{**VALID, "tile": VALID["tile"].copy()})
    assert one is not same
    assert one == same
    assert {one: "found"}[same] == "found"


@pytest.mark.parametrize(
    "change",
    [
        {"tile": np.array([0xFE, 0x0F], np.uint8)},
        {"alphas": np.array([1, 3], np.float32)},
        {"alphas": np.array([1], np.float32)},
        {"shape": (6, 4)},
        {"p": 3, "tile": np.array([0xFF], np.uint8), "alphas": np.ones(1, np.float32)},
    ],
    ids=["one bit", "one alpha", "alpha count", "shape", "p"],
)
def test_different_content_is_unequal(change):
    one, other = TiledTensor(**VALID), TiledTensor(**{**VALID, **change})
    assert one != other
    assert one.digest != other.digest


def test_a_tiled_tensor_equals_no_other_type():
    tiled = TiledTensor(**VALID)
    assert tiled != tiled.digest


# -- finding a tile in a dense array --------------------------------------------------------


@quick
@given(tiled_tensors(APART_OR_ZERO))
def test_from_dense_finds_the_smallest_tile_and_loses_nothing(tiled):
    dense = tiled.expand()
    found = TiledTensor.from_dense(dense)
    assert np.array_equal(found.expand(), dense)
    assert found.q <= tiled.q
    assert found.q == min(q for q in divisors(dense.size) if is_tiled(dense, q))


@quick
@given(tiled_tensors(APART), st.data())
def test_from_dense_looks_through_two_units_of_rounding(tiled, data):
    dense = tiled.expand()
    steps = data.draw(arrays(np.int8, dense.shape, elements=st.integers(-2, 2)))
    rounded = dense.copy()
    for ulps in (1, 2):
        away = np.where(steps > 0, np.copysign(np.inf, dense), np.float32(0))
        rounded = np.where(abs(steps) >= ulps, np.nextafter(rounded, away), rounded)
    clean, found = TiledTensor.from_dense(dense), TiledTensor.from_dense(rounded)
    assert (found.q, found.signs().tolist()) == (clean.q, clean.signs().tolist())
    np.testing.assert_allclose(found.alphas, clean.alphas, rtol=3e-7)


def test_from_dense_keeps_an_alpha_that_most_elements_agree_on():
    tiled = random_tiled((4, 6), [0.1, 0.7], 12)
    dense = tiled.expand()
    dense[0, 0] = np.nextafter(dense[0, 0], np.float32(0))
    assert TiledTensor.from_dense(dense) == tiled


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_from_dense_reads_every_float_width(dtype):
    tiled = random_tiled((6, 10), [0.1, 0.3, 0.7], 20)
    dense = tiled.expand(dtype)
    dense[0] = np.nextafter(dense[0], dtype(0))
    found = TiledTensor.from_dense(dense)
    assert np.array_equal(found.tile, tiled.tile)
    assert found.alphas.dtype == np.float32
    np.testing.assert_allclose(found.alphas, tiled.alphas, rtol=np.finfo(dtype).eps + 1e-7)


def test_from_dense_stores_equal_alphas_once():
    found = TiledTensor.from_dense(random_tiled((6, 10), [0.3], 20).expand())
    assert (found.p, found.alphas.tolist()) == (3, [np.float32(0.3)])


def test_ordinary_weights_hold_no_tile():
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    assert TiledTensor.from_dense(weights) is None


def test_one_flipped_sign_breaks_the_tile():
    dense = random_tiled((8, 6), [1, 2, 3, 4], 12).expand()
    dense[5, 2] *= -1
    assert TiledTensor.from_dense(dense) is None


def test_one_flipped_sign_under_a_single_alpha_leaves_a_binary_layer():
    tiled = random_tiled((8, 6), [2], 12)
    dense = tiled.expand()
    assert TiledTensor.from_dense(dense) == tiled
    dense[5, 2] *= -1
    found = TiledTensor.from_dense(dense)
    assert found.p == 1
    assert np.array_equal(found.expand(), dense)


@pytest.mark.parametrize("place", [(0, 0), (4, 3), (7, 5)])
def test_one_altered_magnitude_breaks_the_tile(place):
    dense = random_tiled((8, 6), [2], 12).expand()
    dense[place] *= np.float32(1 + 1e-5)
    assert TiledTensor.from_dense(dense) is None
    assert TiledTensor.from_dense(dense, rtol=1e-4).q == 12


def test_signs_do_not_matter_where_alpha_is_zero():
    tiled = random_tiled((8, 6), [1, 0, 3, 0], 12)
    dense = tiled.expand()
    dense[2:4] = np.random.default_rng(1).choice([0.0, -0.0], (2, 6))
    dense[6:8] = -dense[6:8]
    found = TiledTensor.from_dense(dense)
    assert np.array_equal(found.tile, tiled.tile)
    assert found.alphas.tolist() == [1, 0, 3, 0]


def test_a_tile_first_used_with_alpha_zero_is_found():
    tiled = random_tiled((8, 6), [0, 2, 3, 4], 12)
    assert TiledTensor.from_dense(tiled.expand()) == tiled


def test_an_array_of_zeros_is_one_bit_and_one_alpha():
    found = TiledTensor.from_dense(np.zeros((4, 6), np.float32))
    assert (found.q, found.alphas.tolist()) == (1, [0])


def test_minimise_bytes_prefers_a_longer_tile_to_many_alphas():
    dense = np.repeat(np.array([1, 2], np.float32), 32).reshape(8, 8)
    smallest_tile = TiledTensor.from_dense(dense)
    smallest_size = TiledTensor.from_dense(dense, minimise="bytes")
    assert (smallest_tile.q, smallest_tile.nbytes) == (1, 1 + 64 * 4)
    assert (smallest_size.q, smallest_size.nbytes) == (32, 4 + 2 * 4)
    assert np.array_equal(smallest_size.expand(), dense)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_that_is_not_finite_holds_no_tile(value):
    assert TiledTensor.from_dense(np.full((4, 6), value, np.float32)) is None


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((2, 3), np.int32), "int32: expected a floating-point"),
        (np.float32(1), r"shape \(\) is not a weight"),
        (np.ones((0, 3), np.float32), r"shape \(0, 3\) is not a weight"),
    ],
)
def test_from_dense_refuses_what_is_no_weight(array, says):
    with pytest.raises(FormatError, match=says):
        TiledTensor.from_dense(array)


# -- alphas of both signs ---------------------------------------------------------------------


def test_a_tile_used_with_negative_alphas_is_found():
    rng = np.random.default_rng(0)
    tiled = TiledTensor.from_signs(rng.choice([-1, 1], 24), [0.5, -2.0, 0.25, -1.0], (8, 12))
    found = TiledTensor.from_dense(tiled.expand())
    assert found.q == 24
    np.testing.assert_array_equal(found.expand(), tiled.expand())


def test_random_weights_are_not_called_tiled_for_the_sake_of_signed_alphas():
    assert TiledTensor.from_dense(np.random.default_rng(0).normal(size=(6, 8))) is None


@pytest.mark.parametrize(("shape", "p"), [((2.5, 4), 2), ((2, 4), None), ((2, 4), float("nan"))])
def test_sizes_that_are_no_whole_numbers_are_refused(shape, p):
    with pytest.raises(FormatError):
        TiledTensor(np.zeros(1, "uint8"), np.ones(1, "float32"), shape, p)
