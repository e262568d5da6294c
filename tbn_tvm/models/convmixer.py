"""ConvMixer with tiled layers.

The architecture is that of Trockman and Kolter, "Patches Are All You Need?" (arXiv:2201.09792):
depthwise convolutions that mix places and pointwise ones that mix channels, each followed by GELU
and batch norm. The default is ConvMixer-768/32 for 224 x 224 images, kernels and patches of 7 and
1000 classes.

==============================  ==========  ==========================  ========================
size                            parameters  of them in convolutions     of them in layers tiled
                                            and the classifier          at ``min_size = 64000``
==============================  ==========  ==========================  ========================
768/32                          21,110,248  20,959,488                  19,755,264
256/8, CIFAR-10                 594,186     581,120                     524,288
(``convmixer-cifar``)
==============================  ==========  ==========================  ========================

Depthwise convolutions (37,632 weights in 768/32) and all smaller layers are binary.
"""

from __future__ import annotations

from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode


def _activated(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm2d(convolution.out_channels))


class ConvMixerBlock(nn.Module):
    """``(B, dim, H, W)`` to the same: a depthwise convolution with a shortcut, and a pointwise."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = _activated(
            nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        )
        self.pointwise = _activated(nn.Conv2d(dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(x + self.depthwise(x))


class ConvMixer(nn.Module):
    """``(B, channels, H, W) -> (B, classes)``, with ordinary float layers.

    Parameters
    ----------
    dim, depth : int
        Channels, and number of blocks.
    kernel_size, patch_size : int
        Sides of the depthwise kernels, which is odd, and of the patches.
    classes, channels : int
        Outputs, and colours of the image.
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 32,
        kernel_size: int = 7,
        patch_size: int = 7,
        classes: int = 1000,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UsageError(f"kernel_size={kernel_size}: expected an odd number")
        self.embed = _activated(nn.Conv2d(channels, dim, patch_size, patch_size))
        self.blocks = nn.Sequential(*(ConvMixerBlock(dim, kernel_size) for _ in range(depth)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.embed(x))).flatten(1))


def convmixer(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> nn.Module:
    """A trainable ConvMixer whose convolutions and classifier are tiled.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`ConvMixer`.
    """
    return tiled(ConvMixer(**sizes), p, min_size, alpha)
