"""The perceptron's forms."""

import pytest
import torch
from torch import nn

import tbn_tvm
from tbn_tvm.errors import UsageError
from tbn_tvm.models.mlp import SumOfLinears, mlp
from tbn_tvm.models.recipes import find_recipe
from tbn_tvm.nn import TiledLinear
from tbn_tvm.training.build import build_model
from tbn_tvm.training.export import export


def test_a_head_of_two_bits_is_one_layer_of_four_levels():
    torch.manual_seed(0)
    head = mlp(widths=(16, 8, 4), min_size=64, head_bits=2, bias=True)[-1]
    parts = [part.tiled_tensor() for part in head.parts]
    assert [part.p for part in parts] == [1, 1]
    weight = sum(torch.from_numpy(part.expand()) for part in parts)
    assert weight.unique().numel() == 4
    assert [part.bias is not None for part in head.parts] == [True, False]
    x = torch.randn(5, 8)
    torch.testing.assert_close(head(x), x @ weight.T + head.parts[0].bias)


def test_a_smoothed_image_is_its_local_means():
    model = mlp(widths=(16, 8, 4), p=None, bias=True, smooth=3)
    x = torch.rand(2, 16)
    padded = nn.functional.pad(x.reshape(2, 4, 4), (1, 1, 1, 1))
    means = sum(padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)) / 9
    torch.testing.assert_close(model(x), model[3:](means.flatten(1)))


@pytest.mark.parametrize(
    "sizes", [{"widths": (15, 4), "smooth": 3}, {"smooth": 2}, {"smooth": 0}, {"smooth": -3}]
)
def test_what_cannot_be_smoothed_is_refused(sizes):
    with pytest.raises(UsageError, match="expected an odd side and square images"):
        mlp(**sizes)


def test_a_head_without_bits_is_refused():
    with pytest.raises(UsageError, match="head_bits=0: expected 1 or more"):
        mlp(head_bits=0)


@pytest.mark.parametrize("head_bits", [1, 3])
def test_the_head_can_do_without_the_bias_that_others_have(head_bits):
    model = mlp(widths=(16, 8, 4), p=None, head_bits=head_bits, bias=True, head_bias=False)
    head = model[-1]
    assert isinstance(head, nn.Linear if head_bits == 1 else SumOfLinears)
    biased = [m.bias is not None for m in model.modules() if isinstance(m, nn.Linear)]
    assert biased == [True] + [False] * head_bits


@pytest.mark.parametrize("name", ["mnist-mlp-bias", "mnist-mlp-smooth"])
def test_biased_recipes_stay_below_their_4_kb(name, tmp_path):
    model = build_model(find_recipe(name), False).eval()
    layers = [module for module in model.modules() if isinstance(module, TiledLinear)]
    assert [layer.tiled_tensor().p for layer in layers] == [4, 1, 1]
    path = tmp_path / "model.pt2"
    export(model, (torch.rand(2, 784),), path)
    project = tbn_tvm.compile(path, "mps2-an386")
    assert project.memory["weights"] < 4096
