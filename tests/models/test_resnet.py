"""Residual networks: their sizes, and that what is compiled computes what PyTorch does."""

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.compiler import load_model
from tbn_tvm.errors import UsageError
from tbn_tvm.models.resnet import resnet
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze

NARROW = dict(widths=(8, 16, 16, 32), min_size=1000)


def relative_error(y: np.ndarray, expected: torch.Tensor) -> float:
    expected = expected.detach().float().numpy()
    return float(np.abs(y.astype(np.float32) - expected).max() / np.abs(expected).max())


def weights(model: torch.nn.Module) -> dict[int, int]:
    """Weights of products by compression factor."""
    found: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, (TiledConv2d, TiledLinear)):
            found[module.p] = found.get(module.p, 0) + module.scores.numel()
    return found


@pytest.mark.parametrize(
    ("depth", "tiled", "binary"), [(18, 10_969_088, 195_264), (34, 20_996_096, 268_992)]
)
def test_the_sizes_for_cifar(depth, tiled, binary):
    assert weights(resnet(depth)) == {4: tiled, 1: binary}


def test_the_size_for_imagenet():
    model = resnet(18, p=8, stem="imagenet", classes=1000)
    norms = sum(2 * m.num_features for m in model.modules() if hasattr(m, "num_features"))
    assert sum(weights(model).values()) + norms + 1000 == 11_689_512  # torchvision's


@pytest.mark.parametrize(("stem", "side", "reduced"), [("cifar", 32, 4), ("imagenet", 64, 2)])
def test_stages_halve_the_image(stem, side, reduced):
    model = resnet(stem=stem, **NARROW).eval()
    x = model.pool(model.conv(torch.zeros(1, 3, side, side)))
    assert model.stages(x).shape == (1, 32, reduced, reduced)


@pytest.mark.parametrize("options", [{"depth": 19}, {"stem": "mnist"}])
def test_unknown_sizes_are_refused_with_what_there_is(options):
    with pytest.raises(UsageError, match="expected"):
        resnet(**options)


@pytest.mark.parametrize(("stem", "dtype"), [("cifar", torch.float32), ("imagenet", torch.float16)])
def test_a_compiled_model_computes_what_pytorch_does(stem, dtype):
    torch.manual_seed(0)
    model = freeze(resnet(stem=stem, **NARROW)).to(dtype)
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    y = tbn_tvm.compile(program, "llvm").run(x.numpy())
    assert relative_error(y, model(x)) < (1e-4 if dtype == torch.float32 else 1e-2)


def test_resnet_18_for_llvm_computes_what_pytorch_does():
    program = load_model("tbn_tvm.models.resnet:example")
    x = torch.rand(1, 3, 32, 32)
    y = tbn_tvm.compile(program, "llvm").run(x.numpy())
    assert relative_error(y, program.module()(x)) < 1e-4
