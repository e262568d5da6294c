"""The operators that frozen layers export to: one node each, bits on disk, same numbers."""

import math
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tbn_tvm.nn import TiledConv1d, TiledConv2d, TiledLinear, freeze, ops
from tbn_tvm.tiling import TiledTensor

BATCH = torch.export.Dim("batch", min=1, max=64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mixed_model():
    model = nn.Sequential(
        TiledConv2d(3, 8, 3, padding=1, p=4),
        nn.ReLU(),
        nn.Flatten(2),
        TiledConv1d(8, 8, 3, stride=2, padding_mode="circular", padding=1, groups=2, p=2),
        nn.Flatten(),
        TiledLinear(8 * 18, 10, p=4, alpha="layer"),
    )
    return freeze(model)


def big_linear():
    return freeze(nn.Sequential(TiledLinear(784, 512, p=4, bias=False), nn.ReLU()))


def calls(program):
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


# -- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("alphas", [[0.5, 2, 3], [0.5]])
@pytest.mark.parametrize("shape", [(6, 8), (6, 1), (4, 3, 5), (3, 2, 3, 3), (3,)])
def test_expand_tile_equals_the_format(shape, alphas):
    signs = np.random.default_rng(0).choice([-1, 1], math.prod(shape) // 3)
    tiled = TiledTensor.from_signs(signs, alphas, shape)
    dense = ops.expand_tile(
        torch.from_numpy(tiled.tile.copy()), torch.from_numpy(tiled.alphas.copy()), shape, tiled.p
    )
    assert torch.equal(dense, torch.from_numpy(tiled.expand()))


def linear_arguments(sizes, dtype=torch.float32, **options):
    layer = TiledLinear(12, 18, dtype=dtype, **options).frozen()
    return ops.tiled_linear, (
        torch.randn(sizes, dtype=dtype),
        layer.tile,
        layer.alpha,
        layer.bias,
        18,
        layer.p,
    )


def conv_arguments(kind, x, stride=1, padding=0, dilation=1, groups=1, **options):
    rank = x.dim() - 2
    layer = kind(4, 8, 3, groups=groups, **options).frozen()
    lists = [[value] * rank for value in (3, stride, padding, dilation)]
    operator = ops.tiled_conv1d if rank == 1 else ops.tiled_conv2d
    return operator, (x, layer.tile, layer.alpha, layer.bias, 8, *lists, groups, layer.p)


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_arguments((5, 12)),
        lambda: linear_arguments((12,), bias=False),
        lambda: linear_arguments((2, 3, 12), torch.float64, alpha="layer"),
        lambda: conv_arguments(TiledConv1d, torch.randn(2, 4, 9)),
        lambda: conv_arguments(TiledConv1d, torch.randn(2, 4, 9), 2, 1, 2, 2, bias=False),
        lambda: conv_arguments(TiledConv2d, torch.randn(2, 4, 9, 8)),
        lambda: conv_arguments(TiledConv2d, torch.randn(2, 4, 9, 8), 2, 3, 2, 4, alpha="layer"),
        lambda: conv_arguments(
            TiledConv2d, torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last), 1, 1
        ),
    ],
    ids=["2d", "1d", "3d", "conv1d", "conv1d options", "conv2d", "conv2d options", "nhwc"],
)
def test_schema_and_fake_kernel_agree_with_the_eager_kernel(make):
    operator, arguments = make()
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


# -- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: linear_arguments((5, 16)), r"tbn_tiled_linear: .*shape \(18, 16\) at p = 4"),
        (lambda: linear_arguments((5, 6)), r"tbn_tiled_linear: .*shape \(18, 6\)"),
        (
            lambda: conv_arguments(TiledConv1d, torch.randn(2, 8, 9)),
            r"tbn_tiled_conv1d: .*shape \(8, 8, 3\)",
        ),
        (
            lambda: conv_arguments(TiledConv2d, torch.randn(2, 3, 9, 9)),
            r"tbn_tiled_conv2d: .*shape \(8, 3, 3, 3\)",
        ),
        (
            lambda: conv_arguments(TiledConv2d, torch.randn(2, 5, 9, 9), groups=2),
            "tbn_tiled_conv2d: 5 channels do not divide into 2 groups",
        ),
    ],
)
def test_the_fake_kernel_refuses_another_channel_count(make, says):
    operator, arguments = make()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        with pytest.raises(ValueError, match=says):
            operator(*fake)


@pytest.mark.parametrize("features", [6, 16])
def test_the_eager_kernel_refuses_another_channel_count(features):
    operator, arguments = linear_arguments((5, features))
    with pytest.raises(ValueError, match="is the input's channel count right"):
        operator(*arguments)


# -- export ---------------------------------------------------------------------------------


def test_export_keeps_each_frozen_layer_as_one_node():
    program = torch.export.export(mixed_model(), (torch.randn(2, 3, 6, 6),))
    assert [name for name in calls(program) if name.startswith("tbn.")] == [
        "tbn.tbn_tiled_conv2d.default",
        "tbn.tbn_tiled_conv1d.default",
        "tbn.tbn_tiled_linear.default",
    ]
    assert not [name for name in calls(program) if "conv" in name and "tbn" not in name]
    assert not [name for name in calls(program) if "linear" in name and "tbn" not in name]


def test_an_export_with_a_dynamic_batch_runs_at_every_batch_size():
    model = mixed_model()
    program = torch.export.export(model, (torch.randn(2, 3, 6, 6),), dynamic_shapes=({0: BATCH},))
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 6, 6)
        torch.testing.assert_close(program.module()(x), model(x))


def test_a_saved_program_holds_bits_and_never_the_float_weight(tmp_path):
    model, path = big_linear(), tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(1, 784),)), path)
    weights = 784 * 512
    loaded = torch.export.load(path)
    stored = [*loaded.state_dict.values(), *loaded.constants.values()]
    assert {(t.dtype, t.numel()) for t in stored if isinstance(t, torch.Tensor)} == {
        (torch.uint8, weights // 4 // 8),
        (torch.float32, 4),
    }
    assert path.stat().st_size < weights * 4 / 16
    with zipfile.ZipFile(path) as archive:
        largest = max(member.file_size for member in archive.infolist())
    assert largest < weights


@pytest.mark.parametrize(
    ("make", "sizes"), [(big_linear, (3, 784)), (mixed_model, (3, 3, 6, 6))], ids=["mlp", "cnn"]
)
def test_a_reloaded_program_gives_identical_outputs(tmp_path, make, sizes):
    model, x = make(), torch.randn(sizes)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    reloaded = torch.export.load(tmp_path / "model.pt2")
    assert torch.equal(reloaded.module()(x), program.module()(x))
    torch.testing.assert_close(reloaded.module()(x), model(x), rtol=1e-6, atol=1e-6)
