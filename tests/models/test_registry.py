"""Architectures by name: what each promises to training, conversion and the command line."""

import sys

import pytest
import torch

from tbn_tvm.compiler import load_model
from tbn_tvm.errors import UsageError
from tbn_tvm.models.registry import MODELS, find_model
from tbn_tvm.nn.layers import TiledLayer


@pytest.fixture(params=MODELS)
def model(request):
    """Each architecture at its small sizes."""
    return find_model(request.param).reduced()


def weights(module: torch.nn.Module) -> int:
    """Parameters, a tiled layer's scores and magnitudes counted once."""
    return sum(
        p.numel() for name, p in module.named_parameters() if not name.endswith("magnitudes")
    )


def test_a_model_has_a_float_twin_of_the_same_size(model):
    tiled, twin = model.build(p=4), model.build(p=None)
    assert {layer.p for layer in tiled.modules() if isinstance(layer, TiledLayer)} == {1, 4}
    assert not any(isinstance(layer, TiledLayer) for layer in twin.modules())
    assert weights(tiled) == weights(twin)


def test_p_min_size_and_alpha_reach_the_layers(model):
    layers = [m for m in model.build(p=2, min_size=0, alpha="layer").modules()]
    layers = [layer for layer in layers if isinstance(layer, TiledLayer)]
    assert {(layer.p, layer.alpha) for layer in layers} == {(2, "layer")}


def test_a_model_takes_its_example_inputs_with_any_batch(model):
    module = model.build().eval()
    assert module(*model.example_inputs(3)).shape[0] == 3


def test_an_unknown_name_is_refused_with_all_there_are():
    with pytest.raises(UsageError, match=r"'resnet-9': expected one of mnist-mlp, .*resnet-8, "):
        find_model("resnet-9")


def test_the_compiler_takes_an_architecture_by_name():
    first, again = load_model("models:resnet-8"), load_model("models:resnet-8")
    x = torch.randn(5, 3, 32, 32)
    y = first.module()(x)
    assert y.shape == (5, 10)
    torch.testing.assert_close(again.module()(x), y)
    with pytest.raises(UsageError, match="unknown model 'nothing'"):
        load_model("models:nothing")


def test_a_module_of_the_users_own_goes_before_the_registry(tmp_path, monkeypatch):
    (tmp_path / "models.py").write_text(
        "import torch\n\n\ndef vit():\n    return torch.nn.Linear(3, 2), (torch.zeros(1, 3),)\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        assert load_model("models:vit").module()(torch.zeros(1, 3)).shape == (1, 2)
    finally:
        sys.modules.pop("models", None)
