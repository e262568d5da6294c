"""Residual networks with tiled layers.

The architecture is that of He et al., "Deep Residual Learning for Image Recognition"
(arXiv:1512.03385), with projection shortcuts: basic blocks in 18 and 34 layers, bottlenecks in 50,
which halve the image in their 3 x 3 convolution as in torchvision (its "version 1.5"). "Tiled Bit
Networks" (arXiv:2407.12075) trains 18 and 50 on CIFAR-10, for which the first layer is one 3 x 3
convolution, and 34 on ImageNet.

=====  =======  ========  ==========  ==========================  ========================
depth  stem     classes   parameters  of them in convolutions     of them in layers tiled
                                      and the classifier          at ``min_size = 64000``
=====  =======  ========  ==========  ==========================  ========================
18     CIFAR    10        11,173,962  11,164,352                  10,969,088
34     CIFAR    10        21,282,122  21,265,088                  20,996,096
50     CIFAR    10        23,520,842  23,467,712                  23,199,744
18     ImageNet 1000      11,689,512  11,678,912                  11,481,088
34     ImageNet 1000      21,797,672  21,779,648                  21,508,096
50     ImageNet 1000      25,557,032  25,502,912                  25,247,744
=====  =======  ========  ==========  ==========================  ========================

Smaller layers (the first, those of the first stage, some of the shortcuts, CIFAR's classifier) are
binary, and batch norms float.

Bits a weight at ``p = 4``, an alpha counted as 32: ResNet-50 for CIFAR-10 has 0.259 in all layers,
6.07 Mbit. ResNet-18 has 0.263, 2.94 Mbit; of its 3 x 3 convolutions but the first, the 10,985,472
weights that the literature on binary networks counts, 0.260, 2.86 Mbit (``tbn-tvm inspect
models:resnet-18 --without conv --without '*.shortcut.*' --without classifier``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode

WIDTHS = (64, 128, 256, 512)
"""Channels in each stage."""


def _shortcut(channels: int, outputs: int, stride: int) -> nn.Sequential:
    """Nothing where shapes agree, else a 1 x 1 convolution with batch norm."""
    if stride == 1 and channels == outputs:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: ``(B, C, H, W) -> (B, width, H / s, W / s)``."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1 that narrow and widen, and a shortcut.

    ``(B, C, H, W) -> (B, 4 width, H / s, W / s)``.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(channels, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""The kind of block, and the number of them in each stage, by layers with weights."""


class ResNet(nn.Module):
    """``(B, channels, H, W) -> (B, classes)``, with ordinary float layers.

    Parameters
    ----------
    block : type
        :class:`BasicBlock` or :class:`Bottleneck`.
    blocks : sequence of int
        Blocks in each stage; every stage but the first halves height and width.
    widths : sequence of int
        Channels in each stage, times the block's ``expansion`` where it ends.
    stem : {"cifar", "imagenet"}
        One 3 x 3 convolution, or one of 7 x 7 with stride 2 and a pooling by 2.
    classes, channels : int
        Outputs, and colours of the image.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck] = BasicBlock,
        blocks: Sequence[int] = DEPTHS[18][1],
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
            after = width * block.expansion
            strides = [1 if stage == 0 else 2, *[1] * (count - 1)]
            inputs = [before, *[after] * (count - 1)]
            made = (block(c, width, s) for c, s in zip(inputs, strides, strict=True))
            stages.append(nn.Sequential(*made))
            before = after
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
    depth : {18, 34, 50}
        Layers with weights.
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        ``blocks``, ``widths``, ``stem``, ``classes`` and ``channels`` of :class:`ResNet`.
    """
    if depth not in DEPTHS:
        raise UsageError(f"depth={depth}: expected one of {', '.join(map(str, DEPTHS))}")
    block, blocks = DEPTHS[depth]
    return tiled(ResNet(block, **{"blocks": blocks, **sizes}), p, min_size, alpha)


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
