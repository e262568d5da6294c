"""Every kind of tiled layer in one model, for tests of formats that models travel in."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import ExportedProgram

from tbn_tvm.nn import TiledConv1d, TiledConv2d, TiledLinear, freeze
from tbn_tvm.nn.layers import FrozenLayer
from tbn_tvm.tiling import TiledTensor

_LINEAR = {
    "whole_rows": {"p": 4},
    "one_alpha": {"p": 4, "alpha": "layer"},
    "no_bias": {"p": 4, "bias": False},
    "whole_tiles": {"p": 48},  # q = 2
    "ragged": {"p": 32},  # q = 3
    "binary": {"p": 1},
}
_CONV2D = {
    "plain": {"p": 2},
    "strided": {"p": 2, "stride": (2, 1), "padding": (1, 2)},
    "dilated": {"p": 8, "dilation": 2, "bias": False},
    "depthwise": {"p": 4, "groups": 4},
    "grouped_ragged": {"p": 16, "groups": 2, "alpha": "layer"},
    "reflect": {"p": 2, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"p": 2, "padding": 1, "padding_mode": "replicate"},
    "circular": {"p": 2, "padding": 1, "padding_mode": "circular"},
    "same": {"p": 2, "padding": "same"},
}
_CONV1D = {
    "plain": {"p": 3},
    "grouped": {"p": 4, "groups": 2, "stride": 2, "padding": 1, "bias": False},
}


class EveryLayer(nn.Module):
    """One output for each of many layers, all on the same three inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleDict({k: TiledLinear(12, 8, **v) for k, v in _LINEAR.items()})
        self.conv2d = nn.ModuleDict({k: TiledConv2d(4, 8, 3, **v) for k, v in _CONV2D.items()})
        self.conv1d = nn.ModuleDict({k: TiledConv1d(4, 6, 3, **v) for k, v in _CONV1D.items()})

    def forward(self, features, image, signal):
        return (
            *(layer(features) for layer in self.linear.values()),
            self.linear["ragged"](features[0]),
            self.linear["whole_rows"](features[0, 0]),
            *(layer(image) for layer in self.conv2d.values()),
            *(layer(signal) for layer in self.conv1d.values()),
        )


def every_layer(dtype: torch.dtype) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The frozen model, and inputs of a batch of 2."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 12), torch.randn(2, 4, 6, 7), torch.randn(2, 4, 9)
    return freeze(EveryLayer().to(dtype)), tuple(x.to(dtype) for x in inputs)


def with_dynamic_batch(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """The program of a model, its batch dynamic."""
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def tiled_layers(model: nn.Module) -> dict[str, TiledTensor]:
    """Name and TiledTensor of each frozen layer."""
    return {
        name: module.tiled_tensor()
        for name, module in model.named_modules()
        if isinstance(module, FrozenLayer)
    }
