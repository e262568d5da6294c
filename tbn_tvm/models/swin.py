"""Swin Transformer with tiled layers.

The architecture is that of Liu et al., "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows" (arXiv:2103.14030), without dropout or stochastic depth; the default is Swin-T for
224 x 224 images and 1000 classes: 28,288,354 parameters, of which 28,199,424 are weights of linear
layers and of the patch embedding, and 27,899,904 are in layers tiled at ``min_size = 64000``. The
patch embedding (4,608 weights) and in the first stage the attentions' outputs and queries, keys and
values (9,216 and 27,648 each) and the MLPs (36,864 each), and so on, are binary.

Tables of relative position bias, biases and layer norms stay float.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode


def into_windows(x: Tensor, window: int) -> Tensor:
    """``(B, H, W, C) -> (B * windows, window**2, C)``, windows by rows."""
    height, width, channels = x.shape[1:]
    x = x.reshape(-1, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`into_windows`."""
    channels = x.shape[-1]
    x = x.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def relative_positions(window: int) -> Tensor:
    """Which entry of the bias table belongs to two places of a window.

    Returns
    -------
    Tensor
        int64 of shape ``(window**2, window**2)``: the offset from the one place to the other, from
        ``1 - window`` to ``window - 1`` along each axis, as one index by rows.
    """
    axis = torch.arange(window)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None] + window - 1
    return offsets[0] * (2 * window - 1) + offsets[1]


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """What keeps places apart that shifting brought into one window from two ends of the image.

    Returns
    -------
    Tensor
        float32 of shape ``(windows, window**2, window**2)``, added to the logits: 0 where the two
        places are neighbours in the image too, else -100.
    """
    axis = torch.arange(side)
    # Along an axis the shifted image has three pieces: whole windows, and the last one's two.
    piece = (axis >= side - window).long() + (axis >= side - shift).long()
    region = (3 * piece[:, None] + piece).reshape(1, side, side, 1)
    region = into_windows(region, window)[..., 0]
    return torch.where(region[:, :, None] == region[:, None], 0.0, -100.0)


class WindowAttention(nn.Module):
    """Self-attention inside windows of a square image, which may be shifted by half a window.

    ``(B, side, side, dim)`` to the same.

    Parameters
    ----------
    dim, heads : int
        Channels, and attention heads, which divide them.
    side, window, shift : int
        Sides of the image and of a window, which divides it; by how much windows are shifted.
    """

    def __init__(self, dim: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("positions", relative_positions(window), persistent=False)
        mask = shift_mask(side, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        y = from_windows(self._attend(into_windows(x, self.window)), self.window, height, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), dims=(1, 2))
        return y

    def _attend(self, x: Tensor) -> Tensor:
        """Attention inside each window: ``(B * windows, window**2, dim)`` to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q * self.scale) @ k.transpose(-1, -2)
        logits = logits + self.bias_table[self.positions].permute(2, 0, 1)
        if self.mask is not None:
            windows, tokens = self.mask.shape[:2]
            logits = logits.reshape(-1, windows, self.heads, tokens, tokens) + self.mask[:, None]
            logits = logits.reshape(-1, self.heads, tokens, tokens)
        return self.out((torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with a layer norm in front and a shortcut."""

    def __init__(self, dim: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, side, window, shift)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class PatchMerging(nn.Module):
    """Squares of 2 x 2 places become one: ``(B, H, W, C) -> (B, H / 2, W / 2, 2 C)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduce = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Down a square's left column, then down its right one, as in published weights.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, dim=-1)))


class SwinTransformer(nn.Module):
    """``(B, channels, image_size, image_size) -> (B, classes)``, with ordinary float layers.

    Parameters
    ----------
    image_size, patch_size, window : int
        Sides of the square image, of its patches and of attention's windows. Every stage's image
        is whole windows, or smaller than one.
    dim : int
        Channels of the first stage; each further one has twice as many, on half the side.
    depths, heads : sequence of int
        Blocks of each stage, every second of them shifted, and their attention heads.
    classes, channels : int
        Outputs, and colours of the image.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 4,
        window: int = 7,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        classes: int = 1000,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UsageError(f"patches of {patch_size} do not tile an image of {image_size}")
        self.embed = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.embed_norm = nn.LayerNorm(dim)
        side = image_size // patch_size
        stages: list[nn.Module] = []
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage:
                stages.append(PatchMerging(dim))
                dim, side = 2 * dim, side // 2
            size = min(window, side)
            if side % size or (stage + 1 < len(depths) and side % 2):
                raise UsageError(
                    f"stage {stage} has {side} x {side} places: expected whole windows of "
                    f"{window}, and an even number wherever a stage follows"
                )
            # One window that is the whole image has nothing to be shifted into.
            shifts = (size // 2 if number % 2 and size < side else 0 for number in range(depth))
            stages += [SwinBlock(dim, count, side, size, shift) for shift in shifts]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))
        return self.head(self.norm(self.stages(x)).mean(dim=(1, 2)))


def swin(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> nn.Module:
    """A trainable Swin Transformer whose linear layers and patch embedding are tiled.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`SwinTransformer`.
    """
    return tiled(SwinTransformer(**sizes), p, min_size, alpha)
