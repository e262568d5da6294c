"""Scalars, biases and statistics fitted to a float model's outputs."""

import copy

import pytest
import torch
from torch import nn

from tbn_tvm.nn import tile_model
from tbn_tvm.nn.calibrate import fit_to_outputs


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 12, bias=False),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


def tiled_pair(p=4, **options):
    """A float model, its tiled form and samples."""
    model, x = cnn(), torch.randn(64, 2, 6, 6) + 0.5
    model(x)
    reference = copy.deepcopy(model.eval())
    tile_model(model, p, min_size=0, **options)
    return model, reference, x


@pytest.mark.parametrize("options", [{}, {"alpha": "layer"}, {"alpha_from": "scores"}])
@torch.no_grad()
def test_outputs_come_nearer_and_bits_stay(options):
    model, reference, x = tiled_pair(**options)
    before, bits = model(x), [model[i].tiled_tensor().tile.tolist() for i in (0, 4, 6)]
    fit_to_outputs(model, reference, (x,))
    target = reference(x)
    assert (model(x) - target).square().mean() < 0.8 * (before - target).square().mean()
    assert [model[i].tiled_tensor().tile.tolist() for i in (0, 4, 6)] == bits


@torch.no_grad()
def test_the_first_layer_gets_the_best_scalars_and_biases_there_are():
    model, reference, x = tiled_pair(p=2)
    fit_to_outputs(model, reference, (x,))
    target = reference[0](x).double()

    def error(scale, shift):
        layer = copy.deepcopy(model[0])
        layer.scale_alphas(torch.tensor(scale))
        layer.bias += shift
        return float((layer(x).double() - target).square().mean())

    best = error([1.0], 0)
    for block in range(2):
        for change in (0.97, 1.03):
            factors = [change if i == block else 1.0 for i in range(2)]
            assert error(factors, 0) > best
    assert error([1.0], 0.01) > best
    assert error([1.0], -0.01) > best


@torch.no_grad()
def test_batch_normalisation_learns_what_comes_now():
    model, reference, x = tiled_pair()
    fit_to_outputs(model, reference, (x,))
    now = model[0](x)
    torch.testing.assert_close(model[1].running_mean, now.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, now.movedim(1, 0).flatten(1).var(1))


def test_modes_and_hooks_are_as_before():
    model, reference, x = tiled_pair()
    model.train()
    model[1].eval()
    fit_to_outputs(model, reference, (x,))
    assert model.training
    assert not model[1].training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_layer_that_is_called_twice_and_one_that_is_not_called():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.body(torch.relu(self.body(x)))

    model = Odd()
    reference = copy.deepcopy(model)
    tile_model(model, 2, min_size=0)
    unused = model.unused.weight.detach().clone()
    fit_to_outputs(model, reference, (torch.randn(20, 8),))
    assert torch.equal(model.unused.weight, unused)
