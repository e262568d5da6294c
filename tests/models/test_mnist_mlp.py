"""Polishing of the microcontroller model as the training engine calls it."""

import pytest
import torch
from torch import nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.mlp import mlp
from tbn_tvm.models.mnist_mlp import moved_by_a_pixel, polish


@pytest.fixture
def digits():
    """Noise in two halves: float32 (80, 784) in [0, 1], and classes 0 and 1."""
    torch.manual_seed(0)
    labels = torch.arange(80) % 2
    images = torch.rand(80, 2, 392) * 0.3
    images[range(80), labels] += 0.5
    return images.flatten(1), labels


def test_sweeps_lower_the_loss_and_count_their_flips(digits):
    torch.manual_seed(0)
    model = mlp(p=4, min_size=1000, widths=(784, 8, 10))
    rows = [polish(model, *digits) for _ in range(3)]
    assert rows[0]["flips"] > 0
    assert rows[0]["loss"] > rows[1]["loss"] >= rows[2]["loss"]


def test_images_move_by_one_pixel():
    dot = torch.zeros(40, 28, 28)
    dot[:, 10, 10] = 1
    moved = moved_by_a_pixel(dot.flatten(1)).view(40, 28, 28)
    assert torch.equal(moved.sum((1, 2)), torch.ones(40))
    places = {tuple(index) for index in moved.nonzero()[:, 1:].tolist()}
    assert places == {(9, 10), (11, 10), (10, 9), (10, 11)}


def test_a_tile_of_broken_rows_is_left_alone(digits):
    model = mlp(p=7, min_size=1000, widths=(784, 9, 10))
    model[0] = type(model[0])(784, 9, bias=False, p=16)
    before = model[0].tiled_tensor()
    assert polish(model, *digits) == {"flips": 0}
    assert model[0].tiled_tensor() == before


@pytest.mark.parametrize("options", [{"bias": True}, {"widths": (784, 8, 8, 10)}, {"min_size": 0}])
def test_other_models_are_refused(digits, options):
    model = mlp(p=4, **{"widths": (784, 8, 10), "min_size": 1000, **options})
    with pytest.raises(UsageError, match="two layers, one tiled and one binary"):
        polish(model, *digits)


def test_a_norm_between_the_layers_is_refused(digits):
    model = nn.Sequential(*mlp(p=4, min_size=1000, widths=(784, 8, 10), norm=True))
    with pytest.raises(UsageError, match="without biases or norms"):
        polish(model, *digits)
