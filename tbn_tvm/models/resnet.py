"""Residual networks with tiled layers.

The architecture is that of He et al., "Deep Residual Learning for Image Recognition"
(arXiv:1512.03385), with basic blocks and projection shortcuts. "Tiled Bit Networks"
(arXiv:2407.12075) trains it on CIFAR-10, for which the first layer is one 3 x 3 convolution.

=====  ======================  ==========================  ========================
depth  parameters, 10 classes  of them in convolutions     of them in layers tiled
                               and the classifier          at ``min_size = 64000``
=====  ======================  ==========================  ========================
18     11,173,962              11,164,352                  10,969,088
34     21,282,122              21,265,088                  20,996,096
=====  ======================  ==========================  ========================

Smaller layers (the first, those of the first stage, two of the shortcuts, the classifier) are
binary, and batch norms float.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks in each stage, by depth."""

WIDTHS = (64, 128, 256, 512)
"""Channels in each stage."""


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: ``(B, C, H, W) -> (B, width, H / s, W / s)``."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """``(B, channels, H, W) -> (B, classes)``, with ordinary float layers.

    Parameters
    ----------
    blocks : sequence of int
        Blocks in each stage; every stage but the first halves height and width.
    widths : sequence of int
        Channels in each stage.
    stem : {"cifar", "imagenet"}
        One 3 x 3 convolution, or one of 7 x 7 with stride 2 and a pooling by 2.
    classes, channels : int
        Outputs, and colours of the image.
    """

    def __init__(
        self,
        blocks: Sequence[int] = BLOCKS[18],
        widths: Sequence[int] = WIDTHS,
        stem: str = "cifar",
        classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise UsageError(f"stem={stem!r}: expected cifar or imagenet")
        large = stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        self.conv = nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        stages, before = [], widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if stage == 0 else 2, *[1] * (count - 1)]
            inputs = [before, *[width] * (count - 1)]
            made = (BasicBlock(c, width, s) for c, s in zip(inputs, strides, strict=True))
            stages.append(nn.Sequential(*made))
            before = width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.conv(x))))
        return self.classifier(self.stages(x).mean(dim=(2, 3)))


def resnet(
    depth: int = 18,
    p: int | None = 4,
    min_size: int = 64_000,
    alpha: AlphaMode = "tile",
    **sizes,
) -> nn.Module:
    """A trainable residual network whose convolutions and classifier are tiled.

    Parameters
    ----------
    depth : {18, 34}
        Layers with weights.
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        ``widths``, ``stem``, ``classes`` and ``channels`` of :class:`ResNet`.
    """
    if depth not in BLOCKS:
        raise UsageError(f"depth={depth}: expected one of {', '.join(map(str, BLOCKS))}")
    return tiled(ResNet(BLOCKS[depth], **sizes), p, min_size, alpha)


def example() -> tuple:
    """ResNet-18 for CIFAR-10 at ``p = 4``, untrained, any batch: for ``tbn-tvm compile``."""
    return _example(32, torch.float32)


def example_half() -> tuple:
    """:func:`example` in float16."""
    return _example(32, torch.float16)


def example_imagenet() -> tuple:
    """ResNet-18 for ImageNet at ``p = 4``, untrained, any batch."""
    return _example(224, torch.float32, stem="imagenet", classes=1000)


def _example(side: int, dtype: torch.dtype, **sizes) -> tuple:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet(**sizes).to(dtype)
    batch = torch.export.Dim("batch", min=1)
    return model, (torch.zeros(2, 3, side, side, dtype=dtype),), ({0: batch},)
