"""The paper's mathematics against float64 NumPy and against autograd written another way."""

import numpy as np
import pytest
import torch

from tbn_tvm.nn.functional import block_alphas, sign_and_tile, tile_signs, tiled_weight

# Whole rows, whole tiles, ragged, a convolution, a vector, and the binary layer.
CASES = [((4, 6), 2), ((4, 6), 8), ((4, 6), 3), ((4, 2, 3, 3), 4), ((12,), 3), ((4, 6), 1)]
cases = pytest.mark.parametrize(("shape", "p"), CASES)
alpha_modes = pytest.mark.parametrize("alpha", ["tile", "layer", "mirrored"])
gradients = pytest.mark.parametrize("gradient", ["identity", "exact"])
sources = pytest.mark.parametrize("alpha_from", ["separate", "scores"])


def normal(shape, seed, grad=False):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_(grad)


def numpy_weight(scores, magnitudes, p, alpha):
    """alpha[e // q] * t[e % q], element by element."""
    flat_w, flat_a = scores.reshape(-1), magnitudes.reshape(-1)
    q = flat_w.size // p
    out = np.empty(flat_w.size)
    for e in range(flat_w.size):
        total = sum(flat_w[e % q + c * q] for c in range(p))
        block = flat_a if alpha == "layer" else flat_a[e // q * q : (e // q + 1) * q]
        out[e] = np.abs(block).mean() * (1.0 if total > 0 else -1.0)
        if alpha == "mirrored" and e // q >= p - p // 2:
            out[e] = -out[e]
    return out.reshape(scores.shape)


def straight_through_weight(scores, magnitudes, p, alpha, gradient):
    """The same weight for autograd: detach() hides the sign, so its derivative is that of
    what stands beside it."""
    blocks = list(scores.reshape(-1).chunk(p))
    total = torch.stack(blocks).sum(0)
    tile = (total > 0).to(scores.dtype) * 2 - 1
    if gradient == "exact":
        uses = [tile + total - total.detach()] * p
    else:
        uses = [tile + block - block.detach() for block in blocks]
    if alpha == "layer":
        alphas = [magnitudes.abs().mean()] * p
    else:
        alphas = [block.abs().mean() for block in magnitudes.reshape(-1).chunk(p)]
    if alpha == "mirrored":
        alphas = [-a if c >= p - p // 2 else a for c, a in enumerate(alphas)]
    return torch.cat([a * use for a, use in zip(alphas, uses, strict=True)]).reshape(scores.shape)


def test_the_tile_is_the_sign_of_the_sum_over_the_blocks():
    scores = torch.tensor([[3.0, -1.0, 0.5], [-1.0, -1.0, -2.0]])
    assert tile_signs(scores, 2).tolist() == [1, -1, -1]


def test_a_sum_of_zero_gives_minus_one():
    assert tile_signs(torch.tensor([2.0, 0.0, -2.0, -0.0]), 2).tolist() == [-1, -1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    scores = torch.ones(4, 2, dtype=dtype)
    assert tile_signs(scores, 2).dtype == dtype
    assert block_alphas(scores, 2).dtype == dtype
    assert tiled_weight(scores, scores, 2).dtype == dtype


def test_alphas_are_mean_magnitudes_of_each_block_or_of_the_layer():
    magnitudes = torch.tensor([[1.0, -3.0], [-0.5, 0.5]])
    assert block_alphas(magnitudes, 2, "tile").tolist() == [2, 0.5]
    assert block_alphas(magnitudes, 2, "layer").tolist() == [1.25]


def test_the_last_half_of_mirrored_alphas_is_negative():
    ones = torch.ones(60)
    assert block_alphas(ones, 4, "mirrored").tolist() == [1, 1, -1, -1]
    assert block_alphas(ones, 5, "mirrored").tolist() == [1, 1, 1, -1, -1]
    assert block_alphas(ones, 1, "mirrored").tolist() == [1]


@alpha_modes
@cases
def test_tiled_weight_equals_the_formula(shape, p, alpha):
    scores, magnitudes = normal(shape, 0), normal(shape, 1)
    expected = numpy_weight(scores.numpy(), magnitudes.numpy(), p, alpha)
    actual = tiled_weight(scores, magnitudes, p, alpha).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


@sources
@alpha_modes
@gradients
@cases
def test_gradients_equal_those_of_autograd_written_with_detach(
    shape, p, gradient, alpha, alpha_from
):
    def loss_and_gradients(make_weight):
        scores = normal(shape, 0, grad=True)
        magnitudes = normal(shape, 1, grad=True) if alpha_from == "separate" else scores
        weight = make_weight(scores, magnitudes, p, alpha, gradient)
        loss = (torch.sin(3 * weight) * normal(shape, 2)).sum()
        loss.backward()
        return loss, scores.grad, magnitudes.grad

    expected = loss_and_gradients(straight_through_weight)
    assert expected[1].abs().min() > 0
    torch.testing.assert_close(loss_and_gradients(tiled_weight), expected, rtol=1e-12, atol=1e-14)


def test_identity_gives_each_score_the_gradient_of_its_own_position():
    scores, upstream = normal((4, 6), 0, grad=True), normal((4, 6), 1)
    sign_and_tile(scores, 3, "identity").backward(upstream)
    assert torch.equal(scores.grad, upstream)


def test_exact_gives_each_score_the_sum_over_the_copies_of_its_tile_entry():
    scores = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    sign_and_tile(scores, 2, "exact").backward(torch.tensor([[1.0, 2, 3], [10, 20, 30]]))
    assert scores.grad.tolist() == [[11, 22, 33], [11, 22, 33]]


@alpha_modes
@cases
def test_the_alpha_path_is_the_true_derivative(shape, p, alpha):
    scores, magnitudes = normal(shape, 0), normal(shape, 1)
    # Away from zero, where the absolute value has no derivative.
    magnitudes = (magnitudes.sign() * (magnitudes.abs() + 0.1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: tiled_weight(scores, a, p, alpha), magnitudes)
