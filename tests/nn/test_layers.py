"""Tiled layers against PyTorch's own layers that are given the dense weight."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tbn_tvm.errors import InputError
from tbn_tvm.nn import TiledConv1d, TiledConv2d, TiledLinear

LINEAR = [
    {"p": 4},
    {"p": 1},
    {"p": 24, "bias": False},
    {"p": 9, "alpha": "layer"},
    {"p": 4, "alpha_from": "scores", "gradient": "exact"},
]

CONV = [
    {},
    {"bias": False, "alpha": "layer"},
    {"stride": 2, "padding": 1},
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "dilation": 3},
    {"dilation": 2, "groups": 2, "alpha_from": "scores"},
    {"groups": 4, "p": 3},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "circular"},
    {"padding": 1, "stride": 2, "padding_mode": "replicate"},
]
CONV_2D_ONLY = [
    {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": (1, 5), "padding": (1, 2), "padding_mode": "circular"},
]
CONVOLUTIONS = [
    *((TiledConv1d, nn.Conv1d, {"kernel_size": 3, **options}) for options in CONV),
    *((TiledConv2d, nn.Conv2d, {"kernel_size": 3, **options}) for options in CONV),
    *((TiledConv2d, nn.Conv2d, options) for options in CONV_2D_ONLY),
]
convolutions = pytest.mark.parametrize(("tiled", "float_class", "options"), CONVOLUTIONS)

TILING_OPTIONS = ("p", "alpha", "alpha_from", "gradient")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def dense_weight(layer):
    """The layer's weight by the paper's formula, in float64 NumPy."""
    scores = layer.scores.detach().double().numpy()
    source = layer.scores if layer.alpha_from == "scores" else layer.magnitudes
    magnitudes = np.abs(source.detach().double().numpy())
    tile = np.where(scores.reshape(layer.p, -1).sum(0) > 0, 1.0, -1.0)
    blocks = layer.p if layer.alpha == "tile" else 1
    alphas = magnitudes.reshape(blocks, -1).mean(1)
    uses = np.repeat(alphas, layer.p // blocks)
    return torch.from_numpy((uses[:, None] * tile).reshape(layer.shape))


def make_conv(tiled, options, dtype=torch.float64):
    layer = tiled(4, 12, dtype=dtype, **options)
    sizes = (2, 4, 11, 9)[: len(layer.shape)]
    return layer, torch.randn(sizes, dtype=dtype)


@pytest.mark.parametrize("options", LINEAR)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_linear_equals_a_dense_linear(options, leading):
    layer = TiledLinear(12, 18, dtype=torch.float64, **options)
    x = torch.randn(*leading, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, dense_weight(layer), layer.bias))


@convolutions
def test_convolution_equals_a_dense_convolution(tiled, float_class, options):
    layer, x = make_conv(tiled, options)
    plain = {name: value for name, value in options.items() if name not in TILING_OPTIONS}
    dense = float_class(4, 12, dtype=torch.float64, **plain)
    with torch.no_grad():
        dense.weight.copy_(dense_weight(layer))
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
    torch.testing.assert_close(layer(x), dense(x))


@convolutions
def test_a_frozen_convolution_computes_what_the_trainable_one_does(tiled, float_class, options):
    layer, x = make_conv(tiled, options, torch.float32)
    torch.testing.assert_close(layer.frozen()(x), layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", LINEAR)
def test_a_frozen_linear_computes_what_the_trainable_one_does(options):
    layer, x = TiledLinear(12, 18, **options), torch.randn(5, 12)
    torch.testing.assert_close(layer.frozen()(x), layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@convolutions
def test_an_input_without_batch_gives_an_output_without_batch(tiled, float_class, options, frozen):
    layer, x = make_conv(tiled, options)
    layer = layer.frozen().double() if frozen else layer
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize(
    ("layer", "tile_bytes", "alphas"),
    [
        (TiledLinear(12, 18, p=4), 7, 4),
        (TiledLinear(12, 18, p=4, alpha="layer", bias=False), 7, 1),
        (TiledConv1d(4, 12, 3, p=2), 9, 2),
        (TiledConv2d(4, 12, 3, p=2), 27, 2),
        (TiledConv2d(4, 12, 3, p=2, dtype=torch.float64), 27, 2),
    ],
)
def test_a_frozen_state_holds_bits_alphas_and_bias_only(layer, tile_bytes, alphas):
    state = layer.frozen().state_dict()
    expected = {
        "tile": (torch.uint8, (tile_bytes,)),
        "alpha": (torch.float32, (alphas,)),
    }
    if layer.bias is not None:
        expected["bias"] = (layer.bias.dtype, tuple(layer.bias.shape))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == expected
    assert not any(value.requires_grad for value in layer.frozen().parameters())


def test_a_frozen_state_loads_into_another_frozen_layer():
    one, other = (TiledConv2d(4, 12, 3).frozen() for _ in range(2))
    x = torch.randn(1, 4, 5, 5)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize(
    "layer", [TiledLinear(12, 18), TiledConv1d(4, 12, 3), TiledConv2d(4, 12, 3)]
)
def test_weight_is_the_dense_weight_in_effect(layer):
    expected = dense_weight(layer).float()
    torch.testing.assert_close(layer.weight, expected)
    torch.testing.assert_close(layer.frozen().weight, expected)
    np.testing.assert_allclose(layer.tiled_tensor().expand(), expected, rtol=1e-6)
    assert layer.frozen().tiled_tensor() == layer.tiled_tensor()


def test_weight_carries_the_gradient_to_scores_and_magnitudes():
    layer = TiledLinear(6, 4, p=2)
    layer.weight.square().sum().backward()
    assert layer.scores.grad.abs().sum() > 0
    assert layer.magnitudes.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_of_any_float_dtype_freeze(dtype):
    layer = TiledLinear(12, 18, dtype=dtype)
    frozen, x = layer.frozen(), torch.randn(3, 12, dtype=dtype)
    assert frozen(x).dtype == dtype
    torch.testing.assert_close(frozen(x), layer(x), rtol=1e-6, atol=1e-6)
    stored, kept = layer.tiled_tensor(), frozen.to(dtype).tiled_tensor()
    assert (kept.shape, kept.p) == (stored.shape, stored.p)
    np.testing.assert_array_equal(kept.tile, stored.tile)
    # Alphas are stored in float32; casting the module rounds them to its dtype.
    np.testing.assert_allclose(kept.alphas, stored.alphas, rtol=float(torch.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("like", "source", "sizes"),
    [
        (TiledLinear.like, nn.Linear(12, 18), (2, 12)),
        (TiledConv1d.like, nn.Conv1d(4, 12, 3, 2, 2, 2, 2, False, "circular"), (2, 4, 9)),
        (
            TiledConv2d.like,
            nn.Conv2d(4, 12, (3, 5), padding="same", dtype=torch.float64),
            (2, 4, 9, 9),
        ),
    ],
)
def test_a_layer_made_like_a_float_layer_starts_from_its_weight(like, source, sizes):
    layer = like(source, start="copy", p=1, alpha="tile")
    assert layer.scores.dtype == source.weight.dtype
    assert torch.equal(layer.scores, source.weight)
    assert torch.equal(layer.magnitudes, source.weight)
    # Its outputs are those of the float layer with the weight replaced by its binary form.
    dense = source.weight.sign() * source.weight.abs().mean()
    source.weight = nn.Parameter(dense)
    x = torch.randn(sizes, dtype=dense.dtype)
    torch.testing.assert_close(layer(x), source(x))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: TiledLinear(5, 7, p=4), r"p=4 does not divide the 35 weights of shape \(7, 5\)"),
        (lambda: TiledLinear(6, 7, p=4), "largest divisor below it is 3"),
        (lambda: TiledLinear(6, 8, p=0), "p=0"),
        (lambda: TiledLinear(6, 8, alpha="row"), "alpha='row': expected one of tile, layer"),
        (lambda: TiledLinear(6, 8, alpha_from="w"), "alpha_from='w': .* separate, scores"),
        (lambda: TiledLinear(6, 8, gradient="ste"), "gradient='ste': .* identity, exact"),
        (lambda: TiledConv2d(4, 6, 3, groups=4), "groups=4 must divide .*=4 and out_channels=6"),
        (lambda: TiledConv2d(4, 6, 3, groups=0), "groups=0"),
        (lambda: TiledConv2d(4, 8, (3, 3, 3)), "kernel_size=.* expected one integer or 2"),
        (lambda: TiledConv1d(4, 8, 3, stride=(1, 1)), "stride=.* expected one integer or 1"),
        (lambda: TiledConv2d(4, 8, 3, padding=(1,)), "padding=.* expected one integer or 2"),
        (lambda: TiledConv2d(4, 8, 3, padding="full"), "padding='full': expected .*'same'"),
        (lambda: TiledConv2d(4, 8, 3, padding="same", stride=2), "'same' needs stride 1"),
        (lambda: TiledConv2d(4, 8, 4, padding="same"), "'same' needs .* odd dilated kernel"),
        (lambda: TiledConv2d(4, 8, 3, padding_mode="wrap"), "padding_mode='wrap': expected zeros"),
    ],
)
def test_a_malformed_layer_is_refused_with_a_reason(build, says):
    with pytest.raises(ValueError, match=says):
        build()


@pytest.mark.parametrize(
    ("layer", "sizes", "says"),
    [
        # 783 features at p = 4 would fit into the bits of 784, and give a wrong answer.
        (TiledLinear(784, 128, p=4), (2, 783), "783 channels: expected 784"),
        (TiledLinear(3, 4, p=1), (2, 4), "4 channels: expected 3"),
        (TiledConv1d(8, 8, 3), (1, 7, 9), "7 channels: expected 8"),
        (TiledConv2d(8, 8, 3, groups=2), (1, 4, 9, 9), "4 channels: expected 8"),
    ],
)
def test_a_frozen_layer_refuses_an_input_of_another_width(layer, sizes, says):
    with pytest.raises(InputError, match=says):
        layer.frozen()(torch.randn(sizes))


@pytest.mark.parametrize("gradient", ["identity", "exact"])
@pytest.mark.parametrize("alpha_from", ["separate", "scores"])
def test_training_recovers_a_tiled_teacher(alpha_from, gradient):
    teacher = TiledLinear(16, 8, p=4)
    x = torch.randn(256, 16)
    target = teacher(x).detach()
    student = TiledLinear(16, 8, p=4, alpha_from=alpha_from, gradient=gradient)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(student(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
    assert torch.equal(student.frozen().tile, teacher.frozen().tile)


# -- stored bits back into a trainable layer --------------------------------------------------


@pytest.mark.parametrize("alpha", ["tile", "layer", "mirrored"])
def test_a_layer_that_loads_a_tiled_tensor_gives_it_back_exactly(alpha):
    torch.manual_seed(0)
    source = TiledLinear(24, 16, p=4, alpha=alpha)
    target = TiledLinear(24, 16, p=4, alpha=alpha)
    target.load_tiled_tensor(source.tiled_tensor())
    assert target.tiled_tensor() == source.tiled_tensor()


def test_a_tiled_tensor_that_does_not_fit_is_refused():
    tiled = TiledLinear(24, 16, p=4).tiled_tensor()
    with pytest.raises(ValueError, match="does not fit"):
        TiledLinear(24, 16, p=2).load_tiled_tensor(tiled)
    with pytest.raises(ValueError, match="does not fit"):
        TiledLinear(24, 16, p=4, alpha="layer").load_tiled_tensor(tiled)
    with pytest.raises(ValueError, match="none is negative"):
        TiledLinear(24, 16, p=4, alpha="mirrored").load_tiled_tensor(tiled)
    with pytest.raises(ValueError, match="scores"):
        TiledLinear(24, 16, p=4, alpha_from="scores").load_tiled_tensor(tiled)
