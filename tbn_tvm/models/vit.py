"""Vision Transformer with tiled layers.

The architecture is that of Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv:2010.11929),
pre-norm, with the class token read out. By default it has the size with which "Tiled Bit Networks"
(arXiv:2407.12075) reports GPU memory: 256 x 256 images in patches of 32 x 32, dimension 1024,
depth 6, 16 heads of 64, MLP 2048, 1000 classes: 54.6 million parameters, of which

==============================  ==========  ==================================
layer                           weights     stored as
==============================  ==========  ==================================
patch embedding, 3072 -> 1024   3,145,728   tile
queries, keys, values (6)       18,874,368  tile
attention's output (6)          6,291,456   tile
MLP (6 x 2)                     25,165,824  tile
classifier, 1024 -> 1000        1,024,000   tile
positions, class token          67,584      float
biases, layer norms             61,416      float
==============================  ==========  ==================================

that is, 54,501,376 weights in 26 tiled layers: 0.250 bits a weight at ``p = 4``, 13.63 Mbit.

``vit-cifar`` is the size for CIFAR-10: patches of 4 x 4, dimension 512, 8 heads, MLP 512, 10
classes. Of its 9,524,842 parameters 9,466,880 are in linear layers and 9,437,184 in layers tiled
at ``min_size = 64000``, all but the patch embedding and the classifier: 0.253 bits a weight, 2.39
Mbit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode


class Attention(nn.Module):
    """Multi-head self-attention with a layer norm in front: ``(B, tokens, dim)`` to the same."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.scale = head_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        weights = torch.softmax(q @ k.transpose(-1, -2) * self.scale, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between them, and a layer norm in front."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )


class VisionTransformer(nn.Module):
    """``(B, channels, image_size, image_size) -> (B, classes)``, with ordinary float layers.

    Parameters
    ----------
    image_size, patch_size : int
        Sides of the square image and of its patches; the one divides the other.
    dim, depth, heads, head_dim, mlp_dim : int
        Width of a token, number of blocks, attention heads and their width, width inside the MLP.
    classes, channels : int
        Outputs, and colours of the image.
    """

    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 32,
        dim: int = 1024,
        depth: int = 6,
        heads: int = 16,
        head_dim: int = 64,
        mlp_dim: int = 2048,
        classes: int = 1000,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} do not tile an image of {image_size}")
        side = image_size // patch_size
        patch = channels * patch_size**2
        self.patch_size = patch_size
        self.embed = nn.Sequential(nn.LayerNorm(patch), nn.Linear(patch, dim), nn.LayerNorm(dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, side * side + 1, dim))
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(
            nn.ModuleList([Attention(dim, heads, head_dim), FeedForward(dim, mlp_dim)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(self._patches(x))
        x = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        x = x + self.positions
        for attention, feed_forward in self.blocks:
            x = x + attention(x)
            x = x + feed_forward(x)
        return self.head(self.norm(x)[:, 0])

    def _patches(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, patches, patch_size * patch_size * C)``."""
        size = self.patch_size
        x = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def vit(p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes) -> nn.Module:
    """A trainable Vision Transformer whose linear layers are tiled.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`VisionTransformer`.
    """
    return tiled(VisionTransformer(**sizes), p, min_size, alpha)


def example() -> tuple:
    """The default model at ``p = 4``, untrained, any batch: for ``tbn-tvm compile``."""
    return _example(torch.float32)


def example_half() -> tuple:
    """:func:`example` in float16."""
    return _example(torch.float16)


def _example(dtype: torch.dtype) -> tuple:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = vit().to(dtype)
    batch = torch.export.Dim("batch", min=1)
    return model, (torch.zeros(2, 3, 256, 256, dtype=dtype),), ({0: batch},)
