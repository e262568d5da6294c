"""Residual networks: their sizes, and that what is compiled computes what PyTorch does."""

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.errors import UsageError
from tbn_tvm.importing import import_model
from tbn_tvm.inspect import totals, without
from tbn_tvm.models.resnet import resnet
from tbn_tvm.nn import freeze

NARROW = dict(widths=(8, 16, 16, 32), min_size=1000)


def relative_error(y: np.ndarray, expected: torch.Tensor) -> float:
    expected = expected.detach().float().numpy()
    return float(np.abs(y.astype(np.float32) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("stem", "side", "reduced"), [("cifar", 32, 4), ("imagenet", 64, 2)])
def test_stages_halve_the_image(stem, side, reduced):
    model = resnet(stem=stem, **NARROW).eval()
    x = model.pool(model.conv(torch.zeros(1, 3, side, side)))
    assert model.stages(x).shape == (1, 32, reduced, reduced)


@pytest.mark.parametrize("options", [{"depth": 19}, {"stem": "mnist"}])
def test_unknown_sizes_are_refused_with_what_there_is(options):
    with pytest.raises(UsageError, match="expected"):
        resnet(**options)


def test_a_compiled_model_in_half_precision_computes_what_pytorch_does():
    torch.manual_seed(0)
    model = freeze(resnet(stem="imagenet", **NARROW)).half()
    x = torch.randn(2, 3, 32, 32).half()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    y = tbn_tvm.compile(program, "llvm").run(x.numpy())
    assert relative_error(y, model(x)) < 1e-2


@pytest.fixture(scope="module")
def full():
    """ResNet-18 for CIFAR-10, imported once."""
    return import_model("tbn_tvm.models.resnet:example")


def test_bits_a_weight_are_the_papers_with_its_selection_of_layers(full):
    # The literature on binary ResNets leaves the first layer, the 1 x 1 shortcuts and the
    # classifier out of account, and so does the paper: 10.99 million weights.
    counted = totals(without(full.layers, ["conv", "*.shortcut.*", "classifier"]))
    assert counted["weights"] == 10_985_472
    assert counted["bits_per_weight"] == pytest.approx(0.258, rel=0.01)


def test_resnet_18_for_llvm_computes_what_pytorch_does(full):
    x = torch.rand(1, 3, 32, 32)
    y = tbn_tvm.compile(full, "llvm").run(x.numpy())
    assert relative_error(y, full.program.module()(x)) < 1e-4
