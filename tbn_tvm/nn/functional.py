"""The paper's mathematics in PyTorch (arXiv:2407.12075, section 3; see ``tbn_tvm.tiling``).

All functions are differentiable and keep the dtype and device of what they are given.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Gradient = Literal["identity", "exact"]
AlphaMode = Literal["tile", "layer", "mirrored"]
"""``tile``: one scalar for each use of the tile; ``layer``: one for the layer; ``mirrored``: as
``tile``, those of the last ``p // 2`` uses negative.

The paper has the first two. Where tiles are whole rows, ``p`` output features are positive
multiples of one product, which biases and ReLU can bend at ``p`` places but in one direction only.
Mirrored uses bend in the other, and cost nothing: a stored scalar has a sign anyway.
"""

ALPHA_MODES: tuple[AlphaMode, ...] = ("tile", "layer", "mirrored")


class _SignAndTile(torch.autograd.Function):
    """Scores to a tiled +-1 weight, with a straight-through gradient."""

    @staticmethod
    def forward(ctx, scores: Tensor, p: int, exact: bool) -> Tensor:
        ctx.p, ctx.exact = p, exact
        signs = tile_signs(scores, p)
        return signs.repeat(p).reshape(scores.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.exact:
            # Every score feeds every copy of its tile entry, so it gets the sum over the copies.
            total = grad.reshape(ctx.p, -1).sum(0)
            grad = total.repeat(ctx.p).reshape(grad.shape)
        return grad, None, None


def tile_signs(scores: Tensor, p: int) -> Tensor:
    """The tile of a score tensor: the signs of the scores summed over the ``p`` blocks.

    Parameters
    ----------
    scores : Tensor
        Float, any shape of ``N`` elements, ``p`` dividing ``N``.
    p : int
        Compression factor.

    Returns
    -------
    Tensor
        Shape ``(N / p,)``: +1 where the sum is positive, -1 where it is zero or negative.
    """
    sums = scores.reshape(p, -1).sum(0)
    return torch.where(sums > 0, 1.0, -1.0).to(scores.dtype)


def sign_and_tile(scores: Tensor, p: int, gradient: Gradient = "identity") -> Tensor:
    """The +-1 weight of full shape that a score tensor stands for.

    Parameters
    ----------
    scores : Tensor
        Float, full shape of the weight.
    p : int
        Compression factor; divides the number of elements.
    gradient : {"identity", "exact"}
        ``identity`` hands each score the gradient at its own position (the paper's choice),
        ``exact`` the sum over the ``p`` copies that it takes part in. Both pass the sign straight
        through.
    """
    if gradient not in ("identity", "exact"):
        raise ValueError(f"gradient={gradient!r}: expected identity or exact")
    return _SignAndTile.apply(scores, p, gradient == "exact")


def block_alphas(magnitudes: Tensor, p: int, alpha: AlphaMode = "tile") -> Tensor:
    """The scalars of a layer: the mean absolute value of each block, or of the whole tensor.

    Returns
    -------
    Tensor
        Shape ``(1,)`` for ``layer``, else ``(p,)``; negative where they are mirrored.
    """
    means = magnitudes.abs().reshape(1 if alpha == "layer" else p, -1).mean(1)
    return means * mirror(p, means) if alpha == "mirrored" else means


def mirror(p: int, like: Tensor) -> Tensor:
    """The signs of mirrored alphas, shape ``(p,)``: the last ``p // 2`` are -1.

    Parameters
    ----------
    p : int
        Compression factor.
    like : Tensor
        Whose dtype and device they take.
    """
    signs = torch.ones(p, dtype=like.dtype, device=like.device)
    signs[p - p // 2 :] = -1
    return signs


def tiled_weight(
    scores: Tensor,
    magnitudes: Tensor,
    p: int,
    alpha: AlphaMode = "tile",
    gradient: Gradient = "identity",
) -> Tensor:
    """The dense weight ``alpha[e // q] * t[e % q]`` that the forward pass of training uses.

    Parameters
    ----------
    scores, magnitudes : Tensor
        W and A of the paper, full shape; they may be the same tensor.
    p : int
        Compression factor.
    alpha : {"tile", "layer", "mirrored"}
        See :data:`AlphaMode`.
    gradient : {"identity", "exact"}
        See :func:`sign_and_tile`.
    """
    signs = sign_and_tile(scores, p, gradient)
    alphas = block_alphas(magnitudes, p, alpha)
    return (signs.reshape(alphas.numel(), -1) * alphas[:, None]).reshape(scores.shape)
