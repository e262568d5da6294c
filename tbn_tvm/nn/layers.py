"""Tiled linear layers and convolutions: trainable, and frozen to tile bits and alphas."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tbn_tvm.nn import ops
from tbn_tvm.nn.base import FrozenLayer, TiledLayer
from tbn_tvm.nn.start import StartMode


class TiledLinear(TiledLayer):
    """A linear layer ``(..., in_features) -> (..., out_features)`` with a tiled weight.

    Takes the options of :class:`TiledLayer` beside those of ``torch.nn.Linear``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options) -> None:
        super().__init__((out_features, in_features), bias, **options)

    @classmethod
    def like(cls, layer: nn.Linear, start: StartMode = "nearest", **options) -> TiledLinear:
        """A tiled layer of a float layer's size that starts from its weight
        (see :meth:`~TiledLayer.load_float_weight`)."""
        made = cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            **options,
        )
        made.load_float_weight(layer.weight, layer.bias, start)
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
    def like(
        cls, layer: nn.Conv1d | nn.Conv2d, start: StartMode = "nearest", **options
    ) -> _TiledConv:
        """A tiled layer of a float layer's size that starts from its weight
        (see :meth:`~TiledLayer.load_float_weight`)."""
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
        made.load_float_weight(layer.weight, layer.bias, start)
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
