"""MLP-Mixer with tiled layers.

The architecture is that of Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision"
(arXiv:2105.01601), pre-norm, read out by the mean over patches; the default is its S/16 for 224 x
224 images and 1000 classes.

==============================  ==========  ==========================  ========================
size                            parameters  of them in linear layers    of them in layers tiled
                                                                        at ``min_size = 64000``
==============================  ==========  ==========================  ========================
S/16                            18,528,264  18,485,248                  17,682,432
CIFAR-10 (``mixer-cifar``)      1,819,530   1,799,168                   1,572,864
==============================  ==========  ==========================  ========================

The MLPs over patches of S/16 (50,176 weights a layer) are binary, as all smaller layers are.
"""

from __future__ import annotations

from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode


class Mixing(nn.Sequential):
    """Two linear layers over the last axis with GELU between them: ``(..., n) -> (..., n)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MixerBlock(nn.Module):
    """An MLP over patches, then one over channels: ``(B, patches, dim)`` to the same."""

    def __init__(self, patches: int, dim: int, token_dim: int, channel_dim: int) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = Mixing(patches, token_dim)
        self.channels = Mixing(dim, channel_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.channel_norm(x))


class Mixer(nn.Module):
    """``(B, channels, image_size, image_size) -> (B, classes)``, with ordinary float layers.

    Parameters
    ----------
    image_size, patch_size : int
        Sides of the square image and of its patches; the one divides the other.
    dim, depth : int
        Channels of a patch, and number of blocks.
    token_dim, channel_dim : int
        Widths inside the MLPs over patches and over channels.
    classes, channels : int
        Outputs, and colours of the image.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        dim: int = 512,
        depth: int = 8,
        token_dim: int = 256,
        channel_dim: int = 2048,
        classes: int = 1000,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UsageError(f"patches of {patch_size} do not tile an image of {image_size}")
        patches = (image_size // patch_size) ** 2
        self.embed = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.blocks = nn.Sequential(
            *(MixerBlock(patches, dim, token_dim, channel_dim) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def mixer(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> nn.Module:
    """A trainable MLP-Mixer whose linear layers are tiled.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper). Tiling the smaller ones as well
        costs this architecture half of its accuracy (81 % to 42 % on CIFAR-10 in the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`Mixer`.
    """
    return tiled(Mixer(**sizes), p, min_size, alpha)
