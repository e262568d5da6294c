"""The Vision Transformer: its size, and that what is compiled computes what PyTorch does."""

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.compiler import load_model
from tbn_tvm.cuda import find_nvcc
from tbn_tvm.errors import ToolError
from tbn_tvm.models.vit import VisionTransformer, vit
from tbn_tvm.nn import TiledLinear, freeze

SMALL = dict(
    image_size=32, patch_size=8, dim=64, depth=2, heads=2, head_dim=32, mlp_dim=128, classes=10
)


def relative_error(y: np.ndarray, expected: torch.Tensor) -> float:
    expected = expected.detach().float().numpy()
    return float(np.abs(y.astype(np.float32) - expected).max() / np.abs(expected).max())


def small(dtype=torch.float32) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return freeze(vit(min_size=1000, **SMALL)).to(dtype), torch.randn(3, 3, 32, 32, dtype=dtype)


def exported(model, x) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},))


def test_the_default_model_has_the_size_of_the_paper():
    model = vit(p=4)
    tiled = [module for module in model.modules() if isinstance(module, TiledLinear)]
    assert len(tiled) == 26
    assert {layer.p for layer in tiled} == {4}
    assert sum(layer.scores.numel() for layer in tiled) == 54_501_376
    floats = (p for n, p in model.named_parameters() if not n.endswith(("scores", "magnitudes")))
    assert sum(p.numel() for p in floats) == 67_584 + 61_416


def test_layers_below_min_size_are_binary_and_alpha_is_an_option():
    model = vit(p=8, min_size=5000, alpha="layer", **SMALL)
    embedding, head = model.embed[1], model.head
    assert (embedding.p, head.p) == (8, 1)
    assert embedding.alpha == "layer"


def test_a_patch_is_a_square_of_the_image():
    model = VisionTransformer(**SMALL)
    x = torch.randn(2, 3, 32, 32)
    patches = model._patches(x)
    assert patches.shape == (2, 16, 192)
    expected = x[:, :, 8:16, 24:32].permute(0, 2, 3, 1).flatten(1)  # row 1, column 3
    torch.testing.assert_close(patches[:, 7], expected)


def test_an_image_that_patches_do_not_tile_is_refused():
    with pytest.raises(ValueError, match="patches of 7 do not tile an image of 32"):
        VisionTransformer(**{**SMALL, "patch_size": 7})


def test_a_compiled_model_for_this_cpu_and_one_batch_computes_what_pytorch_does():
    model, x = small()
    artifact = tbn_tvm.compile(exported(model, x), "host", batch=3)
    assert relative_error(artifact.run(x.numpy()), model(x)) < 1e-4


def test_a_half_precision_model_takes_and_gives_half_precision():
    model, x = small(torch.float16)
    y = tbn_tvm.compile(exported(model, x), "llvm").run(x.numpy())
    assert y.dtype == np.float16
    assert relative_error(y, model(x)) < 1e-2


def test_a_bfloat16_model_survives_its_file(tmp_path):
    model, x = small(torch.bfloat16)
    artifact = tbn_tvm.compile(exported(model, x), "llvm")
    loaded = tbn_tvm.Artifact.load(artifact.save(tmp_path / "model.tbn"))
    y = loaded.run(x.view(torch.int16).numpy().view("bfloat16"))
    assert str(y.dtype) == "bfloat16"
    assert relative_error(y, model(x)) < 5e-2


@pytest.fixture(scope="module")
def full() -> tbn_tvm.compiler.Imported:
    """The default model, imported once."""
    return tbn_tvm.compiler.import_model(load_model("tbn_tvm.models.vit:example"), name="vit")


def test_the_full_model_for_llvm_computes_what_pytorch_does(full):
    x = torch.rand(1, 3, 256, 256)
    y = tbn_tvm.compile(full, "llvm").run(x.numpy())
    assert relative_error(y, full.program.module()(x)) < 1e-4


def test_the_full_model_is_planned_within_16_megabytes_on_a_gpu(full):
    try:
        find_nvcc()
    except ToolError as error:
        pytest.skip(str(error))
    memory = tbn_tvm.compile(full, "cuda=sm_80", batch=1).memory
    # A quarter of the bits, and what is no weight of a product: positions, norms, biases.
    assert memory["weights"] < 54_501_376 / 4 / 8 + 4 * (67_584 + 61_416) + 10_000
    assert memory["peak"] < 16_000_000
