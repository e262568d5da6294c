"""Custom operators of frozen tiled layers: bits in, activations out.

``torch.export`` keeps each as one node, so a saved ``.pt2`` holds the tile's bits and the alphas
and never the float weight. The names repeat the namespace because TVM's importer looks operators
up by name alone.

The eager kernels expand the weight and call PyTorch: they are the definition that compiled code
is compared with, not the fast path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def expand_tile(tile: Tensor, alpha: Tensor, shape: Sequence[int], p: int) -> Tensor:
    """The dense weight of packed bits.

    Parameters
    ----------
    tile : Tensor
        uint8, shape ``(ceil(q / 8),)``.
    alpha : Tensor
        Float, shape ``(1,)`` or ``(p,)``.
    shape : sequence of int
        Shape of the weight.
    p : int
        Compression factor.

    Returns
    -------
    Tensor
        Of alpha's dtype and the given shape.
    """
    _check_tile("expand_tile", tile, alpha, shape, p)
    length = math.prod(shape) // p
    shifts = torch.arange(8, dtype=torch.uint8, device=tile.device)
    bits = (tile[:, None] >> shifts & 1).reshape(-1)[:length]
    signs = bits.to(alpha.dtype) * 2 - 1
    return (alpha.expand(p)[:, None] * signs[None, :]).reshape(*shape)


@torch.library.custom_op("tbn::tbn_tiled_linear", mutates_args=())
def tiled_linear(
    x: Tensor, tile: Tensor, alpha: Tensor, bias: Optional[Tensor], out_features: int, p: int
) -> Tensor:
    """``x @ W.T + bias`` for a tiled W of shape ``(out_features, x.shape[-1])``."""
    weight = expand_tile(tile, alpha.to(x.dtype), (out_features, x.shape[-1]), p)
    return F.linear(x, weight, bias)


@tiled_linear.register_fake
def _(x, tile, alpha, bias, out_features, p):
    _check_tile("tbn_tiled_linear", tile, alpha, (out_features, x.shape[-1]), p)
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("tbn::tbn_tiled_conv1d", mutates_args=())
def tiled_conv1d(
    x: Tensor,
    tile: Tensor,
    alpha: Tensor,
    bias: Optional[Tensor],
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    p: int,
) -> Tensor:
    """``conv1d`` with a tiled weight of shape ``(out_channels, C / groups, *kernel_size)``."""
    shape = (out_channels, x.shape[1] // groups, *kernel_size)
    weight = expand_tile(tile, alpha.to(x.dtype), shape, p)
    # Contiguous whatever the input's memory format is, as the fake kernel promises.
    return F.conv1d(x, weight, bias, stride, padding, dilation, groups).contiguous()


@torch.library.custom_op("tbn::tbn_tiled_conv2d", mutates_args=())
def tiled_conv2d(
    x: Tensor,
    tile: Tensor,
    alpha: Tensor,
    bias: Optional[Tensor],
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    p: int,
) -> Tensor:
    """``conv2d`` with a tiled weight of shape ``(out_channels, C / groups, *kernel_size)``."""
    shape = (out_channels, x.shape[1] // groups, *kernel_size)
    weight = expand_tile(tile, alpha.to(x.dtype), shape, p)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).contiguous()


def conv_output_shape(
    x: Tensor,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Shape of a convolution's output, symbolic where that of ``x`` is."""
    spatial = [
        (extent + 2 * pad - dil * (kernel - 1) - 1) // step + 1
        for extent, pad, dil, kernel, step in zip(
            x.shape[2:], padding, dilation, kernel_size, stride, strict=True
        )
    ]
    return (x.shape[0], out_channels, *spatial)


def _fake_conv(
    x, tile, alpha, bias, out_channels, kernel_size, stride, padding, dilation, groups, p
):
    name = f"tbn_tiled_conv{len(kernel_size)}d"
    if x.shape[1] % groups:
        raise ValueError(f"{name}: {x.shape[1]} channels do not divide into {groups} groups")
    shape = (out_channels, x.shape[1] // groups, *kernel_size)
    _check_tile(name, tile, alpha, shape, p)
    return x.new_empty(conv_output_shape(x, out_channels, kernel_size, stride, padding, dilation))


tiled_conv1d.register_fake(_fake_conv)
tiled_conv2d.register_fake(_fake_conv)


def _check_tile(name: str, tile: Tensor, alpha: Tensor, shape: Sequence[int], p: int) -> None:
    elements = math.prod(shape)
    if elements % p or tile.numel() != (elements // p + 7) // 8 or alpha.numel() not in (1, p):
        raise ValueError(
            f"{name}: a tile of {tile.numel()} byte(s) and {alpha.numel()} alpha(s) does not make "
            f"a weight of shape {tuple(shape)} at p = {p}; is the input's channel count right?"
        )
