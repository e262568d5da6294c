"""Two networks in the shapes of the MLPerf Tiny benchmark, every layer tiled.

Source of the shapes: Banbury et al., "MLPerf Tiny Benchmark", NeurIPS Datasets and Benchmarks 2021,
arXiv:2106.07597: the anomaly-detection autoencoder and the image-classification ResNet-8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tbn_tvm.models.mlp import mlp
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode

AUTOENCODER_WIDTHS = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)


def autoencoder(
    p: int | None = 4,
    min_size: int = 0,
    alpha: AlphaMode = "tile",
    widths: Sequence[int] = AUTOENCODER_WIDTHS,
    **tiling,
) -> nn.Module:
    """640-128-128-128-128-8-128-128-128-128-640 with batch norm and ReLU between layers.

    264,192 weights and as many multiply-adds, biases apart.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers of fewer weights are binary, with p = 1.
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    widths : sequence of int
        Inputs, hidden units of each layer, outputs.
    **tiling
        Further arguments of :func:`tbn_tvm.nn.tile_model`.
    """
    return mlp(p, min_size, alpha, widths, bias=True, norm=True, **tiling)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class _ResNet8(nn.Module):
    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(first)
        self.blocks = nn.Sequential(
            _Block(first, first, 1), _Block(first, second, 2), _Block(second, third, 2)
        )
        self.head = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem_norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def resnet8(
    p: int | None = 4,
    min_size: int = 0,
    alpha: AlphaMode = "tile",
    classes: int = 10,
    widths: Sequence[int] = (16, 32, 64),
    **tiling,
) -> nn.Module:
    """ResNet-8 for 32x32x3: nine convolutions with 12.5 M multiply-adds, 77,360 weights in all.

    Parameters as :func:`autoencoder`, ``widths`` being the channels of the three stages, and
    ``classes``.
    """
    return tiled(_ResNet8(classes, widths), p, min_size, alpha, **tiling)


def autoencoder_example() -> tuple:
    """For the command line: the autoencoder with random weights, and an input."""
    return _settled(autoencoder(), torch.randn(16, 640)), (torch.randn(1, 640),)


def resnet8_example() -> tuple:
    """For the command line: ResNet-8 with random weights, and an input."""
    return _settled(resnet8(), torch.randn(16, 3, 32, 32)), (torch.randn(1, 3, 32, 32),)


def _settled(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms having seen some data."""
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(x)
    return model.eval()
