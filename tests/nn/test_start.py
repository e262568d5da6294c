"""The tiled weight nearest to a float one, and the layer that starts from it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tbn_tvm.nn import TiledConv2d, TiledLinear
from tbn_tvm.nn.start import nearest_tiling


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def squared_error(weight, start, p):
    """Of the tiled weight, in float64 NumPy."""
    blocks = weight.double().numpy().reshape(p, -1)
    alphas = np.broadcast_to(start.alphas.double().numpy(), (p,))
    return ((blocks - alphas[:, None] * start.signs.double().numpy()) ** 2).sum()


def least_error(weight, p, alpha):
    """Over all signs, with the best scalars of each: blocks are short enough to try them."""
    blocks = weight.double().numpy().reshape(p, -1)
    best = np.inf
    for signs in itertools.product((-1.0, 1.0), repeat=blocks.shape[1]):
        scalars = np.maximum((blocks * np.array(signs)).mean(1), 0)
        if alpha == "layer":
            scalars = np.full(p, max((blocks * np.array(signs)).mean(), 0))
        best = min(best, ((blocks - scalars[:, None] * np.array(signs)) ** 2).sum())
    return best


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3, 4]), st.sampled_from(["tile", "layer"]))
@settings(max_examples=40, deadline=None)
def test_no_other_signs_and_scalars_are_much_nearer(seed, p, alpha):
    weight = torch.randn(p, 6, generator=torch.Generator().manual_seed(seed))
    least = least_error(weight, p, alpha)
    error = squared_error(weight, nearest_tiling(weight, p, alpha), p)
    # One scalar, or one block, has a closed form; the rest is a search that may stop early.
    exact = alpha == "layer" or p == 1
    assert least * (1 - 1e-5) <= error <= least * (1.00001 if exact else 1.25)


def test_a_weight_that_is_tiled_already_is_found():
    layer = TiledLinear(20, 12, p=4, bias=False)
    start = nearest_tiling(layer.weight, 4)
    assert start.explained == pytest.approx(1)
    again = TiledLinear(20, 12, p=4, bias=False)
    again.load_start(start)
    torch.testing.assert_close(again.weight, layer.weight)


def test_a_block_that_contradicts_the_others_gets_no_negative_scalar():
    block = torch.randn(1, 10)
    start = nearest_tiling(torch.cat([block, block, -block]), 3)
    assert start.alphas[2] == 0
    torch.testing.assert_close(start.signs, torch.sign(block[0]))


def test_what_is_explained_is_what_the_error_leaves():
    weight = torch.randn(8, 3, 3, 3)
    start = nearest_tiling(weight, 4)
    left = squared_error(weight, start, 4) / float(weight.double().square().sum())
    assert start.explained == pytest.approx(1 - left, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"alpha": "layer"}, {"alpha": "mirrored"}, {"alpha_from": "scores"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_has_the_signs_and_scalars_it_starts_from(options, dtype):
    weight = torch.randn(2, 4, 3, 3).repeat(4, 1, 1, 1)
    layer = TiledConv2d(4, 8, 3, p=4, dtype=dtype, **options)
    if layer.alpha == "mirrored":
        weight[4:] *= -1
    weight += torch.randn(8, 4, 3, 3)
    start = nearest_tiling(weight, 4, layer.alpha)
    assert start.alphas.all()
    layer.load_start(start)
    tiled = layer.tiled_tensor()
    assert np.array_equal(tiled.signs(), start.signs.numpy())
    np.testing.assert_allclose(
        tiled.alphas, start.alphas, rtol=1e-5 if dtype.itemsize > 2 else 2e-3
    )


def test_scores_lie_on_the_scale_of_a_random_start_and_the_least_sure_bits_nearest_to_zero():
    weight = torch.randn(64, 200) * 1e-3
    layer, start = TiledLinear(200, 64, p=4, bias=False), nearest_tiling(weight, 4)
    random = layer.scores.detach().reshape(4, -1).sum(0).abs().mean()
    layer.load_start(start)
    sums = layer.scores.detach().reshape(4, -1).sum(0).abs()
    assert 0.9 < float(sums.mean() / random) < 1.1
    assert torch.equal(sums.argsort()[-100:], start.confidence.argsort()[-100:])


def test_an_alpha_of_zero_can_grow():
    block = torch.randn(1, 10)
    layer = TiledLinear(10, 3, p=3, bias=False)
    layer.load_start(nearest_tiling(torch.cat([block, block, -block]), 3))
    layer(torch.randn(4, 10)).square().sum().backward()
    assert layer.magnitudes.grad.all()


def test_a_zero_weight_starts_from_zero():
    start = nearest_tiling(torch.zeros(4, 6), 2)
    layer = TiledLinear(6, 4, p=2, bias=False)
    layer.load_start(start)
    assert not layer.weight.any()
    assert layer.scores.isfinite().all()


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="start='best': expected one of nearest, copy, random"):
        TiledLinear(6, 4, p=2).load_float_weight(torch.zeros(4, 6), None, "best")
