"""Checkpoints of the reference implementation against the paper's formulae in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from tbn_tvm.errors import TbnError
from tbn_tvm.nn import TiledLinear, freeze, load_reference_state_dict, tile_model


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class ReferenceLinear(nn.Linear):
    """A layer that keeps A in ``weight`` and W beside it, as the reference does."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.scores = nn.Parameter(torch.randn_like(self.weight))


class ReferenceConv2d(nn.Conv2d):
    """The same of a convolution."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.scores = nn.Parameter(torch.randn_like(self.weight))


def architecture(conv=nn.Conv2d, linear=nn.Linear):
    return nn.Sequential(
        conv(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        linear(8 * 36, 24),
        nn.Linear(24, 10),
    )


def checkpoint():
    """Of an architecture whose last layer is float."""
    model = architecture(ReferenceConv2d, ReferenceLinear)
    model(torch.randn(8, 3, 8, 8))
    return model.state_dict()


def tiled_model(**options):
    model = architecture()
    tile_model(model, 4, min_size=1000, skip=["4"], **options)
    return model


def dense_weight(scores, weight, p, alpha):
    """By the paper's formulae, in float64."""
    scores, weight = (t.double().numpy().reshape(p, -1) for t in (scores, weight))
    tile = np.where(scores.sum(0) > 0, 1.0, -1.0)
    alphas = np.abs(weight).mean(1) if alpha == "tile" else np.full(p, np.abs(weight).mean())
    return alphas[:, None] * tile


@pytest.mark.parametrize("alpha", ["tile", "layer"])
def test_bits_and_alphas_are_what_the_reference_computes(alpha):
    model, state = tiled_model(alpha=alpha), checkpoint()
    kinds = load_reference_state_dict(model, state)
    assert kinds == {"0": "binary", "3": "tiled", "4": "float"}
    freeze(model)
    for name, p in (("0", 1), ("3", 4)):
        expected = dense_weight(state[f"{name}.scores"], state[f"{name}.weight"], p, alpha)
        tiled = model.get_submodule(name).tiled_tensor()
        assert tiled.p == p
        np.testing.assert_allclose(tiled.expand().reshape(p, -1), expected, rtol=1e-6)
    assert torch.equal(model[4].weight, state["4.weight"])
    assert torch.equal(model[1].running_var, state["1.running_var"])
    assert torch.equal(model[3].bias, state["3.bias"])


def test_a_sum_of_zero_gives_minus_one():
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    tile_model(model, 2, min_size=0)
    scores = torch.tensor([[1.0, -1.0, 0.0, 2.0], [-1.0, 2.0, 0.0, 1.0]])
    load_reference_state_dict(model, {"0.scores": scores, "0.weight": torch.ones(2, 4)})
    assert model[0].tiled_tensor().signs().tolist() == [-1, 1, -1, 1]


def test_alphas_of_scores_leave_weight_aside():
    model, state = tiled_model(alpha_from="scores"), checkpoint()
    load_reference_state_dict(model, state)
    expected = dense_weight(state["3.scores"], state["3.scores"], 4, "tile")
    np.testing.assert_allclose(model[3].tiled_tensor().expand().reshape(4, -1), expected, rtol=1e-6)


def test_a_binary_layer_without_scores_is_the_sign_of_its_weight():
    model, state = tiled_model(), checkpoint()
    del state["0.scores"]
    load_reference_state_dict(model, state)
    expected = dense_weight(state["0.weight"], state["0.weight"], 1, "tile")
    np.testing.assert_allclose(model[0].tiled_tensor().expand().reshape(1, -1), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    ],
    ids=["data parallel", "nested", "both", "without counts"],
)
def test_wrappings_do_not_matter(wrap):
    state = checkpoint()
    first, second = tiled_model(), tiled_model()
    load_reference_state_dict(first, state)
    load_reference_state_dict(second, wrap(state))
    for name, value in first.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, second.state_dict()[name])


def test_layers_can_be_paired_in_order():
    state = checkpoint()
    names = {"0": "stem.conv", "1": "stem.bn", "3": "fc1", "4": "fc2"}
    renamed = {
        f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value
        for key, value in state.items()
    }
    first, second = tiled_model(), tiled_model()
    load_reference_state_dict(first, state)
    load_reference_state_dict(second, renamed, match="order")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    del renamed["fc2.weight"], renamed["fc2.bias"]
    with pytest.raises(TbnError, match="3 layers with tensors and the model 4"):
        load_reference_state_dict(second, renamed, match="order")


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded():
    model, state = tiled_model(), checkpoint()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    del state["3.scores"], state["1.weight"]
    state["5.weight"] = torch.zeros(2)
    state["4.weight"] = torch.zeros(10, 23)
    state["4.bias"] = torch.zeros(10, dtype=torch.int64)
    with pytest.raises(TbnError) as caught:
        load_reference_state_dict(model, state)
    message = str(caught.value)
    assert "missing: 1.weight, 3.scores" in message
    assert "left over: 5.weight" in message
    assert "4.weight (10, 23) (the model has (10, 24))" in message
    assert "not of floats: 4.bias (torch.int64)" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_of_a_layer_that_is_float_here_are_left_over():
    model = architecture()
    tile_model(model, 4, min_size=1000, skip=["3", "4"])
    with pytest.raises(TbnError, match=r"left over: 3\.scores"):
        load_reference_state_dict(model, checkpoint())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"epoch": 3}, "holds no tensors under epoch"),
        ({}, "holds no tensors"),
        ({"0.weight": torch.zeros(1), "epoch": 3}, "no tensor: epoch"),
    ],
)
def test_what_is_no_state_dict_is_refused(state, message):
    with pytest.raises(TbnError, match=message):
        load_reference_state_dict(tiled_model(), state)


def test_a_frozen_model_is_refused():
    with pytest.raises(TbnError, match="before freezing"):
        load_reference_state_dict(freeze(tiled_model()), checkpoint())


def test_a_wrong_shape_is_told_by_the_checkpoint_s_name():
    model = torch.nn.Sequential(TiledLinear(8, 8, p=4, bias=False))
    given = {"0.weight": torch.zeros(4, 4), "0.scores": torch.zeros(8, 8)}
    with pytest.raises(TbnError, match=r"of another shape: 0\.weight \(4, 4\)"):
        load_reference_state_dict(model, given)
