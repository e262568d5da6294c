"""What tiled layers of all kinds share: trainable, and frozen to tile bits and alphas."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tbn_tvm.errors import InputError
from tbn_tvm.nn import ops
from tbn_tvm.nn.functional import (
    ALPHA_MODES,
    AlphaMode,
    Gradient,
    block_alphas,
    mirror,
    tile_signs,
    tiled_weight,
)
from tbn_tvm.nn.start import START_MODES, Start, StartMode, nearest_tiling
from tbn_tvm.tiling import TiledTensor, largest_divisor

_TINY = 1e-30


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
    alpha : {"tile", "layer", "mirrored"}
        See :data:`~tbn_tvm.nn.functional.AlphaMode`.
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
            ("alpha", alpha, ALPHA_MODES),
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
    def load_float_weight(
        self, weight: Tensor, bias: Tensor | None, start: StartMode = "nearest"
    ) -> None:
        """Start from a float layer.

        ``nearest`` chooses bits and alphas by :func:`~tbn_tvm.nn.start.nearest_tiling` and hands
        them to :meth:`load_start`; ``copy`` makes the weight both scores and magnitudes; with
        ``random`` only the bias is taken over.
        """
        if start not in START_MODES:
            raise ValueError(f"start={start!r}: expected one of {', '.join(START_MODES)}")
        if start == "nearest":
            self.load_start(nearest_tiling(weight, self.p, self.alpha))
        elif start == "copy":
            self.scores.copy_(weight)
            if self.magnitudes is not None:
                self.magnitudes.copy_(weight)
        if bias is not None:
            self.bias.copy_(bias)

    @torch.no_grad()
    def load_start(self, start: Start) -> None:
        """Start from chosen signs and alphas.

        Magnitudes become the alpha of their block. All copies of a score get the same value: its
        sign is the bit, and its size says how much the bit matters, on the scale on which the sum
        over the copies lies after :meth:`reset_parameters`. So bits flip at the learning rates
        that suit a random start, and those that matter least flip first. Where alphas are means of
        the scores, each block of scores has its alpha for a mean instead.
        """
        weights = start.confidence / start.confidence.mean().clamp(min=_TINY)
        # No bit is so unsure that rounding may turn it.
        scores = start.signs * weights.clamp(min=1e-4)
        # |A| has no slope at zero: an alpha of zero would never grow.
        sizes = start.alphas.abs()
        alphas = sizes.clamp(min=float(sizes.mean()) / 100).expand(self.p)
        if self.magnitudes is None:
            copies = alphas[:, None] * (scores / scores.abs().mean())
        else:
            fan_in = math.prod(self.shape[1:])
            level = 2 / math.sqrt(math.pi * fan_in * self.p)
            copies = (level * scores).expand(self.p, -1)
            self.magnitudes.copy_(alphas.repeat_interleave(scores.numel()).reshape(self.shape))
        self.scores.copy_(copies.reshape(self.shape))

    @torch.no_grad()
    def scale_alphas(self, factors: Tensor) -> None:
        """Multiply the alphas by factors above zero, shape ``(p,)`` or ``(1,)``.

        After :meth:`load_start` the bits stay as they are.
        """
        source = self._alpha_source
        by_block = factors.to(source).expand(self.p)[:, None]
        source.copy_((source.reshape(self.p, -1) * by_block).reshape(self.shape))

    @torch.no_grad()
    def load_tiled_tensor(self, tiled: TiledTensor) -> None:
        """Start from stored bits and alphas: :meth:`tiled_tensor` then gives them back.

        Raises
        ------
        ValueError
            Where shape, ``p`` or the number of alphas differ, an alpha has a sign that this layer's
            cannot have, or alphas come from the scores.
        """
        count = 1 if self.alpha == "layer" else self.p
        if (tiled.shape, tiled.p) != (self.shape, self.p) or tiled.alphas.size != count:
            raise ValueError(f"{tiled!r} does not fit a layer with {self.extra_repr()}")
        alphas = torch.from_numpy(tiled.alphas.copy()).to(self.scores)
        if self.alpha == "mirrored":
            alphas = alphas * mirror(self.p, alphas)
        if (alphas < 0).any():
            raise ValueError(
                "a trainable layer's alphas are means of magnitudes: none is negative, but for the "
                f"last p // 2 of mirrored ones; got {tiled.alphas.tolist()}"
            )
        if self.magnitudes is None:
            raise ValueError("a layer whose alphas come from its scores cannot take other alphas")
        signs = torch.from_numpy(tiled.signs()).to(self.scores)
        self.scores.copy_(signs.repeat(self.p).reshape(self.shape))
        alphas = alphas.expand(self.p)
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
