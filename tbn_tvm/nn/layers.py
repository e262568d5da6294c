"""Tiled layers: trainable, and frozen to tile bits and alphas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tbn_tvm.errors import InputError
from tbn_tvm.nn import ops
from tbn_tvm.nn.functional import AlphaMode, Gradient, block_alphas, tile_signs, tiled_weight
from tbn_tvm.tiling import TiledTensor, largest_divisor


class TiledLayer(nn.Module):
    """What all trainable tiled layers share: scores, magnitudes and the weight they make.

    Parameters
    ----------
    shape : tuple of int
        Shape of the weight, output features or channels first.
    bias : bool
        Whether there is a float bias of shape ``(shape[0],)``.
    p : int
        Compression factor; divides the number of weights.
    alpha : {"tile", "layer"}
        One scalar for each use of the tile, or one for the layer.
    alpha_from : {"separate", "scores"}
        Whether alphas are means of a tensor of their own (A of the paper) or of the scores (W).
    gradient : {"identity", "exact"}
        Straight-through at each position, or summed over the copies of the tile.

    Attributes
    ----------
    scores : nn.Parameter
        W of the paper, full shape: the tile is the sign of its sum over the ``p`` blocks.
    magnitudes : nn.Parameter or None
        A of the paper, full shape; None for ``alpha_from="scores"``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        *,
        p: int = 4,
        alpha: AlphaMode = "tile",
        alpha_from: str = "separate",
        gradient: Gradient = "identity",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("alpha", alpha, ("tile", "layer")),
            ("alpha_from", alpha_from, ("separate", "scores")),
            ("gradient", gradient, ("identity", "exact")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
        elements = math.prod(shape)
        if p < 1 or elements % p:
            raise ValueError(
                f"p={p} does not divide the {elements} weights of shape {tuple(shape)}; the "
                f"largest divisor below it is {largest_divisor(elements, p)}"
            )
        self.shape, self.p = tuple(shape), p
        self.alpha, self.alpha_from, self.gradient = alpha, alpha_from, gradient
        options = {"device": device, "dtype": dtype}
        self.scores = nn.Parameter(torch.empty(shape, **options))
        self.magnitudes = (
            nn.Parameter(torch.empty(shape, **options)) if alpha_from == "separate" else None
        )
        self.bias = nn.Parameter(torch.empty(shape[0], **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming normal for scores and magnitudes, as the authors do; biases as PyTorch does."""
        nn.init.kaiming_normal_(self.scores)
        if self.magnitudes is not None:
            nn.init.kaiming_normal_(self.magnitudes)
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def load_float_weight(self, weight: Tensor, bias: Tensor | None) -> None:
        """Start from a float layer: its weight becomes both scores and magnitudes."""
        self.scores.copy_(weight)
        if self.magnitudes is not None:
            self.magnitudes.copy_(weight)
        if bias is not None:
            self.bias.copy_(bias)

    @torch.no_grad()
    def load_tiled_tensor(self, tiled: TiledTensor) -> None:
        """Start from stored bits and alphas: :meth:`tiled_tensor` then gives them back.

        Raises
        ------
        ValueError
            Where shape, ``p`` or the number of alphas differ, an alpha is negative (alphas are
            means of magnitudes), or alphas come from the scores.
        """
        count = self.p if self.alpha == "tile" else 1
        if (tiled.shape, tiled.p) != (self.shape, self.p) or tiled.alphas.size != count:
            raise ValueError(f"{tiled!r} does not fit a layer with {self.extra_repr()}")
        if (tiled.alphas < 0).any():
            raise ValueError("a trainable layer's alphas are means of magnitudes: none is negative")
        if self.magnitudes is None:
            raise ValueError("a layer whose alphas come from its scores cannot take other alphas")
        signs = torch.from_numpy(tiled.signs()).to(self.scores)
        self.scores.copy_(signs.repeat(self.p).reshape(self.shape))
        alphas = torch.from_numpy(tiled.alphas.copy()).to(self.scores).expand(self.p)
        self.magnitudes.copy_(alphas.repeat_interleave(tiled.q).reshape(self.shape))

    @property
    def _alpha_source(self) -> Tensor:
        return self.scores if self.magnitudes is None else self.magnitudes

    @property
    def weight(self) -> Tensor:
        """The dense weight in effect, with its gradient: what code that asks a layer for
        ``weight`` must see."""
        return tiled_weight(self.scores, self._alpha_source, self.p, self.alpha, self.gradient)

    @torch.no_grad()
    def tiled_tensor(self) -> TiledTensor:
        """The stored form of the weight in effect."""
        return TiledTensor.from_signs(
            tile_signs(self.scores, self.p).float().cpu().numpy(),
            # In float64, where the mean of equal values is that value.
            block_alphas(self._alpha_source.double(), self.p, self.alpha).float().cpu().numpy(),
            self.shape,
        )

    def extra_repr(self) -> str:
        return (
            f"shape={self.shape}, p={self.p}, alpha={self.alpha}, alpha_from={self.alpha_from}, "
            f"gradient={self.gradient}, bias={self.bias is not None}"
        )


class FrozenLayer(nn.Module):
    """What all frozen tiled layers share: buffers ``tile`` (uint8) and ``alpha`` (float32)."""

    def __init__(self, tiled: TiledTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape, self.p = tiled.shape, tiled.p
        self.register_buffer("tile", torch.from_numpy(tiled.tile.copy()))
        self.register_buffer("alpha", torch.from_numpy(tiled.alphas.copy()))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), False)

    @property
    def weight(self) -> Tensor:
        """The dense weight, expanded at each call."""
        return ops.expand_tile(self.tile, self.alpha, self.shape, self.p)

    def _check_channels(self, given: int, expected: int) -> None:
        # The operators know the input's width only, and fewer channels may still fit the bits.
        if given != expected:
            raise InputError(f"the input has {given} channels: expected {expected}")

    def tiled_tensor(self) -> TiledTensor:
        """The stored form."""
        alphas = self.alpha.float().cpu().numpy()
        return TiledTensor(self.tile.cpu().numpy(), alphas, self.shape, self.p)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, p={self.p}, bias={self.bias is not None}"


class TiledLinear(TiledLayer):
    """A linear layer ``(..., in_features) -> (..., out_features)`` with a tiled weight.

    Takes the options of :class:`TiledLayer` beside those of ``torch.nn.Linear``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options) -> None:
        super().__init__((out_features, in_features), bias, **options)

    @classmethod
    def like(cls, layer: nn.Linear, **options) -> TiledLinear:
        """A tiled layer of a float layer's size that starts from its weight."""
        made = cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            **options,
        )
        made.load_float_weight(layer.weight, layer.bias)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def frozen(self) -> FrozenTiledLinear:
        """The inference form of this layer, on the same device."""
        return FrozenTiledLinear(self.tiled_tensor(), self.bias).to(self.scores.device)


class FrozenTiledLinear(FrozenLayer):
    """A linear layer that holds bits: ``(..., in_features) -> (..., out_features)``."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_channels(x.shape[-1], self.shape[1])
        return ops.tiled_linear(x, self.tile, self.alpha, self.bias, self.shape[0], self.p)


class _TiledConv(TiledLayer):
    """A convolution of ``rank`` spatial dimensions with a tiled weight."""

    rank: int
    _frozen_class: type

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        **options,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        kernel = _per_axis(kernel_size, self.rank, "kernel_size")
        super().__init__((out_channels, in_channels // groups, *kernel), bias, **options)
        self.kernel_size, self.groups = kernel, groups
        self.stride = _per_axis(stride, self.rank, "stride")
        self.dilation = _per_axis(dilation, self.rank, "dilation")
        self.padding = resolve_padding(padding, kernel, self.stride, self.dilation)
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(
                f"padding_mode={padding_mode!r}: expected zeros, reflect, replicate or circular"
            )
        self.padding_mode = padding_mode

    @classmethod
    def like(cls, layer: nn.Conv1d | nn.Conv2d, **options) -> _TiledConv:
        """A tiled layer of a float layer's size that starts from its weight."""
        made = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            **options,
        )
        made.load_float_weight(layer.weight, layer.bias)
        return made

    def forward(self, x: Tensor) -> Tensor:
        x, padding = _pad_explicitly(x, self.padding, self.padding_mode)
        convolve = F.conv1d if self.rank == 1 else F.conv2d
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def frozen(self) -> _FrozenTiledConv:
        """The inference form of this layer, on the same device."""
        return self._frozen_class(self).to(self.scores.device)


class _FrozenTiledConv(FrozenLayer):
    _operator: staticmethod

    def __init__(self, layer: _TiledConv) -> None:
        super().__init__(layer.tiled_tensor(), layer.bias)
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups
        self.padding_mode = layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        self._check_channels(x.shape[1 - len(self.shape)], self.shape[1] * self.groups)
        x, padding = _pad_explicitly(x, self.padding, self.padding_mode)
        unbatched = x.dim() == len(self.shape) - 1
        y = self._operator(
            x.unsqueeze(0) if unbatched else x,
            self.tile,
            self.alpha,
            self.bias,
            self.shape[0],
            self.shape[2:],
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.p,
        )
        return y.squeeze(0) if unbatched else y


class FrozenTiledConv1d(_FrozenTiledConv):
    """A 1-d convolution that holds bits: ``(B, C_in, L) -> (B, C_out, L')``."""

    _operator = staticmethod(ops.tiled_conv1d)


class FrozenTiledConv2d(_FrozenTiledConv):
    """A 2-d convolution that holds bits: ``(B, C_in, H, W) -> (B, C_out, H', W')``."""

    _operator = staticmethod(ops.tiled_conv2d)


class TiledConv1d(_TiledConv):
    """A 1-d convolution with a tiled weight; arguments as ``torch.nn.Conv1d`` and
    :class:`TiledLayer`."""

    rank = 1
    _frozen_class = FrozenTiledConv1d


class TiledConv2d(_TiledConv):
    """A 2-d convolution with a tiled weight; arguments as ``torch.nn.Conv2d`` and
    :class:`TiledLayer`."""

    rank = 2
    _frozen_class = FrozenTiledConv2d


def resolve_padding(
    padding: int | Sequence[int] | str,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Symmetric padding an axis, also from PyTorch's words ``"valid"`` and ``"same"``.

    Raises
    ------
    ValueError
        For ``"same"`` with a stride, or where it would pad the two sides differently.
    """
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        totals = [dil * (size - 1) for dil, size in zip(dilation, kernel, strict=True)]
        if any(step != 1 for step in stride) or any(total % 2 for total in totals):
            raise ValueError(
                "padding='same' needs stride 1 and an odd dilated kernel; pad explicitly instead"
            )
        return tuple(total // 2 for total in totals)
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}: expected integers, 'valid' or 'same'")
    return _per_axis(padding, len(kernel), "padding")


def _per_axis(value: int | Sequence[int], rank: int, name: str) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"{name}={value!r}: expected one integer or {rank}")
    return values


def _pad_explicitly(x: Tensor, padding: tuple[int, ...], mode: str) -> tuple[Tensor, tuple]:
    """Padding other than with zeros is done ahead of the convolution, as PyTorch does."""
    if mode == "zeros":
        return x, padding
    sides = [side for pad in reversed(padding) for side in (pad, pad)]
    return F.pad(x, sides, mode=mode), (0,) * len(padding)
