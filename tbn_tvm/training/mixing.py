"""Mixing the samples of a batch with one another, targets included."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mix(
    x: Tensor,
    labels: Tensor,
    classes: int,
    random: torch.Generator,
    mixup: float,
    cutmix: float,
) -> tuple[Tensor, Tensor]:
    """Blend each sample with the one before it in the batch, or paste a rectangle of that.

    Batches are in random order already, so the neighbour is as good as any. Zhang et al.,
    arXiv:1710.09412 (mixup); Yun et al., arXiv:1905.04899 (CutMix).

    Parameters
    ----------
    x : Tensor
        Float ``(B, C, H, W)``.
    labels : Tensor
        int64 ``(B,)``.
    classes : int
        Of the targets.
    random : torch.Generator
        On the CPU.
    mixup, cutmix : float
        Parameter of the Beta distribution of the share; 0 for none. With both, one is drawn.

    Returns
    -------
    Tensor
        Mixed samples.
    Tensor
        Probabilities ``(B, classes)``.
    """
    targets = F.one_hot(labels, classes).float()
    cut = cutmix > 0 and (mixup == 0 or float(torch.rand(1, generator=random)) < 0.5)
    share = _beta(cutmix if cut else mixup, random)
    other = x.roll(1, 0)
    if cut:
        height, width = x.shape[2:]
        top, bottom, left, right = _rectangle(height, width, 1 - share, random)
        x = x.clone()
        x[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        x = torch.lerp(other, x, share)
    return x, torch.lerp(targets.roll(1, 0), targets, share)


def _beta(parameter: float, random: torch.Generator) -> float:
    """From Beta(parameter, parameter); PyTorch's own sampler takes no generator."""
    seed = int(torch.randint(0, 2**62, (), generator=random))
    return float(np.random.default_rng(seed).beta(parameter, parameter))


def _rectangle(
    height: int, width: int, area: float, random: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a rectangle of a share of the area, cut off at the edges."""
    side = math.sqrt(area)
    ends = []
    for size, centre in zip((height, width), torch.rand(2, generator=random), strict=True):
        middle, half = float(centre) * size, side * size / 2
        ends += [max(0, round(middle - half)), min(size, round(middle + half))]
    return tuple(ends)
