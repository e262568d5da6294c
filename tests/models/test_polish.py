"""Coordinate descent on bits: it lowers the loss that the model itself has."""

import pytest
import torch

from tbn_tvm.models.polish import Polisher, _nearest_sums
from tbn_tvm.nn import TiledLinear


@pytest.fixture
def problem():
    """Layers and a small data set that a teacher of another kind labelled."""
    torch.manual_seed(0)
    fc1, fc2 = TiledLinear(16, 24, bias=False, p=4), TiledLinear(24, 5, bias=False, p=1)
    images = torch.rand(300, 16)
    labels = (images @ torch.randn(16, 5)).argmax(1)
    return fc1, fc2, images, labels


def loss_of(fc1, fc2, images, labels):
    """Mean cross entropy of the model as it would be stored."""
    hidden = torch.relu(images @ torch.from_numpy(fc1.tiled_tensor().expand()).T)
    logits = hidden @ torch.from_numpy(fc2.tiled_tensor().expand()).T
    return float(torch.nn.functional.cross_entropy(logits, labels))


def test_each_sweep_lowers_the_models_own_loss(problem):
    losses = [loss_of(*problem)]
    for _ in range(4):
        flips, loss = Polisher(*problem).sweep()
        assert loss == pytest.approx(loss_of(*problem), rel=1e-4)
        losses.append(loss)
        assert flips >= 0
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


def test_the_layers_stay_of_their_form(problem):
    fc1, fc2 = problem[:2]
    Polisher(*problem).sweep()
    first, second = fc1.tiled_tensor(), fc2.tiled_tensor()
    assert (first.p, first.alphas.size, second.p, second.alphas.size) == (4, 4, 1, 1)
    assert (first.alphas > 0).all() and (second.alphas > 0).all()


def test_a_sweep_depends_on_bits_and_alphas_alone(problem):
    fc1, fc2, images, labels = problem
    copies = TiledLinear(16, 24, bias=False, p=4), TiledLinear(24, 5, bias=False, p=1)
    for copy, layer in zip(copies, (fc1, fc2), strict=True):
        copy.load_tiled_tensor(layer.tiled_tensor())
    assert Polisher(fc1, fc2, images, labels).sweep() == Polisher(*copies, images, labels).sweep()
    assert [c.tiled_tensor() for c in copies] == [fc1.tiled_tensor(), fc2.tiled_tensor()]


def test_sums_of_signed_alphas_are_recovered():
    torch.manual_seed(0)
    signs = torch.where(torch.rand(5, 3, 7) > 0.5, 1.0, -1.0)
    alphas = torch.tensor([4.0, 2.0, 1.0])
    readout = (signs * alphas[None, :, None]).sum(1)
    found, fitted = _nearest_sums(readout, alphas)
    torch.testing.assert_close((found * fitted[None, :, None]).sum(1), readout)


def test_a_tile_that_is_not_whole_rows_is_refused():
    fc1, fc2 = TiledLinear(10, 12, bias=False, p=8), TiledLinear(12, 3, bias=False, p=1)
    with pytest.raises(ValueError, match="whole rows"):
        Polisher(fc1, fc2, torch.rand(5, 10), torch.zeros(5, dtype=torch.int64))
