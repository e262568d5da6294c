"""Random small models, described by values: what hypothesis draws, shrinks and prints.

A description's text rebuilds the model: ``from tbn_tvm.testing.random_models import *`` and
``build(Model(...))``.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from tbn_tvm.nn import TiledConv1d, TiledConv2d, TiledLinear
from tbn_tvm.tiling import Alignment, Geometry

MAX_ELEMENTS = 900
"""Of an activation of one sample: firmware of many models stays quick to emulate."""

MAX_WEIGHTS = 8_000
"""Of a layer."""

POINTWISE = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


INTEGER = ["relu", "relu6", "gelu", "sigmoid", "tanh"]
"""Those of them that int8 models can have."""


@dataclass(frozen=True)
class Dense:
    """A tiled linear layer; an image is flattened before it."""

    rows: int
    p: int
    alpha: str
    bias: bool


@dataclass(frozen=True)
class Conv:
    """A tiled convolution of as many spatial dimensions as ``kernel`` has."""

    rows: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    p: int
    alpha: str
    bias: bool


@dataclass(frozen=True)
class Norm:
    """Batch norm with scales of both signs, or layer norm over the last axis."""

    kind: str


@dataclass(frozen=True)
class Pointwise:
    """A key of :data:`POINTWISE`."""

    name: str


@dataclass(frozen=True)
class Softmax:
    """Over features, channels first."""


@dataclass(frozen=True)
class Pool:
    """``max`` or ``avg`` pooling."""

    kind: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class GlobalMean:
    """The mean of each channel."""


@dataclass(frozen=True)
class Residual:
    """Layers that keep the shape, with their input added to what they make."""

    layers: tuple


@dataclass(frozen=True)
class Model:
    """A model and what it is compiled as.

    Attributes
    ----------
    shape : tuple of int
        Of one sample.
    batch : int or None
        None leaves it free.
    activations : str
        ``float32``, or ``affine`` or ``symmetric`` int8.
    layers : tuple
        Of the classes above, in order.
    seed : int
        Of weights and inputs.
    """

    shape: tuple[int, ...]
    batch: int | None
    activations: str
    layers: tuple
    seed: int


# -- from descriptions to modules ------------------------------------------------------------


def build(model: Model) -> tuple[nn.Module, torch.Tensor]:
    """The float32 module with trainable layers, and an input of four samples.

    A model of a fixed batch takes as many of them.
    """
    torch.manual_seed(model.seed)
    modules, shape = [], model.shape
    for layer in model.layers:
        made, shape = _module(layer, shape)
        modules.append(made)
    return nn.Sequential(*modules).eval(), torch.randn(4, *model.shape)


def dense_twin(module: nn.Module) -> nn.Module:
    """The same function in float64, with tiled weights expanded: what results are compared with."""
    twin = copy.deepcopy(module)
    for name, child in list(twin.named_modules()):
        if isinstance(child, (TiledLinear, TiledConv1d, TiledConv2d)):
            parent = twin.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _expanded(child))
    return twin.double()


def _expanded(layer) -> nn.Module:
    weight = torch.from_numpy(layer.tiled_tensor().expand())
    if isinstance(layer, TiledLinear):
        dense = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None)
    else:
        kind = nn.Conv1d if layer.rank == 1 else nn.Conv2d
        dense = kind(
            weight.shape[1] * layer.groups,
            weight.shape[0],
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
        )
    with torch.no_grad():
        dense.weight.copy_(weight)
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
    return dense


class _Shortcut(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class _GlobalMean(nn.Module):
    def forward(self, x):
        return x.mean(tuple(range(2, x.dim())))


def _module(layer, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    rank = len(shape) - 1
    match layer:
        case Dense(rows, p, alpha, bias):
            made = TiledLinear(math.prod(shape), rows, bias, p=p, alpha=alpha)
            made = made if rank == 0 else nn.Sequential(nn.Flatten(), made)
        case Conv(rows, kernel, stride, padding, dilation, groups, p, alpha, bias):
            kind = TiledConv1d if rank == 1 else TiledConv2d
            window = kernel, stride, padding, dilation
            made = kind(shape[0], rows, *window, groups, bias, p=p, alpha=alpha)
        case Norm("batch"):
            made = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[rank](shape[0])
            for tensor, low, high in (
                (made.running_mean, -1, 1),
                (made.running_var, 0.5, 2),
                (made.weight, -1.5, 1.5),
                (made.bias, -1, 1),
            ):
                nn.init.uniform_(tensor, low, high)
        case Norm(_):
            made = nn.LayerNorm(shape[-1])
        case Pointwise(name):
            made = POINTWISE[name]()
        case Softmax():
            made = nn.Softmax(1)
        case Pool(kind, kernel, stride, padding):
            name = f"{'Max' if kind == 'max' else 'Avg'}Pool{rank}d"
            made = getattr(nn, name)(kernel, stride, padding)
        case GlobalMean():
            made = _GlobalMean()
        case Residual(layers):
            body = [_module(inner, shape)[0] for inner in layers]
            return _Shortcut(nn.Sequential(*body)), shape
    return made, output_shape(layer, shape)


def output_shape(layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one sample behind a layer."""
    match layer:
        case Dense():
            return (layer.rows,)
        case Conv():
            return (layer.rows, *_windows(shape[1:], layer, layer.dilation))
        case Pool():
            return (shape[0], *_windows(shape[1:], layer, (1,) * len(layer.kernel)))
        case GlobalMean():
            return shape[:1]
    return shape


def _windows(extents, layer, dilation) -> tuple[int, ...]:
    return tuple(
        (extent + 2 * pad - space * (taps - 1) - 1) // step + 1
        for extent, taps, step, pad, space in zip(
            extents, layer.kernel, layer.stride, layer.padding, dilation, strict=True
        )
    )


# -- strategies ------------------------------------------------------------------------------


@st.composite
def models(draw) -> Model:
    """Models that compile for a board, mostly of one to four tiled layers."""
    activations = draw(st.sampled_from(["float32"] * 5 + ["affine", "symmetric"]))
    integer = activations != "float32"
    shape = draw(_shapes())
    first, layers, current = shape, [], shape
    for _ in range(draw(st.integers(1, 4))):
        tiled = draw(_tiled(current))
        layers.append(tiled)
        current = output_shape(tiled, current)
        for follower in draw(_followers(current, integer)):
            layers.append(follower)
            current = output_shape(follower, current)
    # TVM's run time calibrates one sample at a time.
    batch = draw(st.sampled_from([None, 1] if integer else [1, None, 2, 3]))
    return Model(first, batch, activations, tuple(layers), draw(st.integers(0, 9999)))


def _shapes():
    return st.one_of(
        st.tuples(st.integers(1, 150)),
        st.tuples(st.integers(1, 12), st.integers(3, 40)),
        st.tuples(st.integers(1, 9), st.integers(3, 10), st.integers(3, 10)),
    )


@st.composite
def _tiled(draw, shape: tuple[int, ...]):
    """A tiled layer that fits behind a shape."""
    alpha, bias = draw(st.sampled_from(["tile", "layer"])), draw(st.booleans())
    if len(shape) == 1 or draw(st.integers(0, 5)) == 5:
        n = math.prod(shape)
        rows, p = draw(_rows_and_p(n, 1))
        return Dense(rows, p, alpha, bias)
    kernel, stride, padding, dilation = draw(_window(shape[1:], dilated=True))
    divisors = [d for d in range(1, shape[0] + 1) if shape[0] % d == 0]
    groups = draw(st.sampled_from(sorted({1, shape[0], draw(st.sampled_from(divisors))})))
    n = shape[0] // groups * math.prod(kernel)
    room = Conv(1, kernel, stride, padding, dilation, groups, 1, alpha, bias)
    pixels = math.prod(output_shape(room, shape)[1:])
    rows, p = draw(_rows_and_p(n, groups, min(MAX_ELEMENTS // pixels, 24)))
    return Conv(rows, kernel, stride, padding, dilation, groups, p, alpha, bias)


@st.composite
def _rows_and_p(draw, n: int, groups: int, most: int = 40) -> tuple[int, int]:
    """Output rows and compression of an alignment that is drawn where the shape has it."""
    most = max(min(most, MAX_WEIGHTS // n), groups)
    choices: dict[Alignment, list] = {}
    for rows in range(groups, most + 1, groups):
        for p in range(1, 17):
            if rows * n % p == 0:
                alignment = Geometry(rows, n, rows * n // p).alignment
                choices.setdefault(alignment, []).append((rows, p))
    alignment = draw(st.sampled_from(sorted(choices, key=lambda a: a.name)))
    return draw(st.sampled_from(choices[alignment]))


@st.composite
def _window(draw, extents: tuple[int, ...], dilated: bool):
    """Kernel, stride, padding and dilation that leave at least one position."""
    chosen = []
    for extent in extents:
        taps = draw(st.integers(1, min(5, extent)))
        space = draw(st.integers(1, max((extent - 1) // (taps - 1), 1) if taps > 1 else 1))
        space = min(space, 3) if dilated else 1
        # Pooling pads by half a window at most; more than a whole one is of no use to anybody.
        pad = draw(st.integers(0, taps - 1 if dilated else taps // 2))
        chosen.append((taps, draw(st.integers(1, 3)), pad, space))
    return tuple(zip(*chosen, strict=True))


@st.composite
def _followers(draw, shape: tuple[int, ...], integer: bool) -> list:
    """What stands between a tiled layer and the next."""
    made = [Norm("batch")] if draw(st.booleans()) else []
    made += draw(st.lists(_pointwise(integer), max_size=1))
    if draw(st.integers(0, 3)) == 3:
        made.append(draw(_residual(shape, integer)))
    if len(shape) > 1 and draw(st.booleans()):
        kernel, stride, padding, _ = draw(_window(shape[1:], dilated=False))
        pool = Pool(draw(st.sampled_from(["max", "avg"])), kernel, stride, padding)
        means = st.just(GlobalMean())
        made.append(draw(st.one_of(st.just(pool), st.just(pool), means)))
    if draw(st.integers(0, 5)) == 5:
        made.append(Softmax() if integer else draw(st.sampled_from([Softmax(), Norm("layer")])))
    return made


def _pointwise(integer: bool):
    names = INTEGER if integer else list(POINTWISE)
    return st.sampled_from(names).map(Pointwise)


@st.composite
def _residual(draw, shape: tuple[int, ...], integer: bool) -> Residual:
    alpha, bias = draw(st.sampled_from(["tile", "layer"])), draw(st.booleans())
    if len(shape) == 1:
        rows, n = shape[0], shape[0]
    else:
        kernel = tuple(draw(st.sampled_from([1, 3])) for _ in shape[1:])
        groups = draw(st.sampled_from(sorted({1, shape[0]})))
        rows, n = shape[0], shape[0] // groups * math.prod(kernel)
    p = draw(st.sampled_from([p for p in range(1, 17) if rows * n % p == 0]))
    if len(shape) == 1:
        tiled = Dense(rows, p, alpha, bias)
    else:
        ones, padding = (1,) * len(kernel), tuple(taps // 2 for taps in kernel)
        tiled = Conv(rows, kernel, ones, padding, ones, groups, p, alpha, bias)
    return Residual((tiled, *draw(st.lists(_pointwise(integer), max_size=1))))
