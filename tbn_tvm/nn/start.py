"""Where training starts from: the tiled weight nearest to a float one.

A float weight ``W``, seen as ``p`` blocks ``W_i`` of ``q`` elements, is approximated by signs ``t``
and scalars ``a_i >= 0`` that minimise ``sum_i ||W_i - a_i t||^2``. For given scalars the best signs
are those of ``sum_i a_i W_i``; for given signs the best scalars are the means of ``W_i * t``, or
zero where that is negative. Taking turns never gets worse and ends after a few rounds; it is done
from several starting points at once, and the best end wins. With one scalar a layer both are known
in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tbn_tvm.nn.functional import AlphaMode, mirror

StartMode = Literal["nearest", "copy", "random"]
"""``nearest``: this module's start. ``copy``: the float weight becomes scores and magnitudes.
``random``: the float weight is not looked at."""

START_MODES = ("nearest", "copy", "random")

_ROUNDS = 100
_GAIN = 1e-7


@dataclass(frozen=True)
class Start:
    """Signs and scalars to start from.

    Attributes
    ----------
    signs : Tensor
        +1 or -1, shape ``(q,)``.
    alphas : Tensor
        Not negative unless mirrored, shape ``(p,)``, or ``(1,)`` with one scalar a layer.
    confidence : Tensor
        ``|sum_i a_i W_i|``, shape ``(q,)``: how much each sign matters to the fit.
    explained : float
        The share of the float weight's sum of squares that the tiled one reproduces, 0 to 1.
    """

    signs: Tensor
    alphas: Tensor
    confidence: Tensor
    explained: float


@torch.no_grad()
def nearest_tiling(weight: Tensor, p: int, alpha: AlphaMode = "tile") -> Start:
    """The tiled weight nearest to a float one, as far as taking turns finds it.

    The starting points for the scalars are equal ones, the leading singular vector of the blocks
    and each block by itself.

    Parameters
    ----------
    weight : Tensor
        Float, any shape of ``N`` elements, ``p`` dividing ``N``.
    p : int
        Compression factor.
    alpha : {"tile", "layer", "mirrored"}
        See :data:`~tbn_tvm.nn.functional.AlphaMode`.

    Returns
    -------
    Start
        In float32 at least, on the weight's device.
    """
    blocks = weight.detach().reshape(p, -1)
    blocks = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    if alpha == "mirrored":
        # The nearest to the mirrored blocks, mirrored.
        signs = mirror(p, blocks)
        start = nearest_tiling(blocks * signs[:, None], p)
        return replace(start, alphas=start.alphas * signs)
    # A column a starting point.
    scalars = _starting_points(blocks) if alpha == "tile" else blocks.new_ones(p, 1)
    best, signs = -1.0, blocks
    for _ in range(_ROUNDS):
        signs = torch.where(scalars.T @ blocks > 0, 1.0, -1.0).to(blocks.dtype)
        scalars = blocks @ signs.T / blocks.shape[1]
        if alpha == "layer":
            scalars = scalars.mean(0, keepdim=True).expand(p, -1)
        scalars = scalars.clamp(min=0)
        gains = scalars.square().sum(0)
        if float(gains.max()) <= best * (1 + _GAIN):
            break
        best = float(gains.max())
    chosen = int(gains.argmax())
    signs, scalars = signs[chosen], scalars[:, chosen]
    energy = float(blocks.square().sum())
    return Start(
        signs,
        scalars.clone() if alpha == "tile" else scalars[:1].clone(),
        (scalars @ blocks).abs(),
        float(gains[chosen]) * blocks.shape[1] / energy if energy else 1.0,
    )


def _starting_points(blocks: Tensor) -> Tensor:
    """Scalars to begin with, shape ``(p, p + 2)``."""
    p = blocks.shape[0]
    # In float64, and of p x p elements only: the left singular vectors of the blocks.
    leading = torch.linalg.eigh((blocks @ blocks.T).double())[1][:, -1].to(blocks)
    leading = leading * torch.where(leading.sum() < 0, -1.0, 1.0)
    eye = torch.eye(p, dtype=blocks.dtype, device=blocks.device)
    return torch.cat([blocks.new_ones(p, 1), leading.clamp(min=0)[:, None], eye], dim=1)
