"""Mean-only batch norm: centred while training, a bias afterwards."""

import pytest
import torch
from torch import nn

import tbn_tvm
from tbn_tvm.nn import MeanOnlyBatchNorm1d, TiledLinear, freeze


def test_a_training_batch_has_the_bias_as_its_mean():
    torch.manual_seed(0)
    norm = MeanOnlyBatchNorm1d(6)
    x = 3 + torch.randn(50, 6)
    y = norm(x)
    torch.testing.assert_close(y.mean(0), norm.bias.detach())
    torch.testing.assert_close(y - y.mean(0), x - x.mean(0))


def test_the_running_mean_approaches_the_mean_of_the_data():
    torch.manual_seed(0)
    norm = MeanOnlyBatchNorm1d(3, momentum=0.5)
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    for step in range(1, 5):
        norm(x)
        torch.testing.assert_close(norm.running_mean, x.mean(0) * (1 - 0.5**step))


def test_biases_start_apart():
    torch.manual_seed(0)
    bias = MeanOnlyBatchNorm1d(1000, spread=0.5).bias.detach()
    assert bias.abs().max() <= 0.5
    assert float(bias.std()) == pytest.approx(0.5 / 3**0.5, rel=0.1)


def test_a_frozen_model_computes_the_same_with_one_bias_a_feature():
    torch.manual_seed(0)
    model = nn.Sequential(TiledLinear(10, 8, bias=False), MeanOnlyBatchNorm1d(8), nn.ReLU())
    model(1 + torch.randn(30, 10))
    x = torch.randn(5, 10)
    expected = model.eval()(x)
    frozen = freeze(model)
    torch.testing.assert_close(frozen(x), expected)
    floats = [t for t in frozen.state_dict().values() if t.dtype == torch.float32]
    assert sorted(t.numel() for t in floats) == [4, 8]
    artifact = tbn_tvm.compile(torch.export.export(frozen, (x,)), "llvm")
    torch.testing.assert_close(torch.from_numpy(artifact.run(x.numpy())), expected.detach())
