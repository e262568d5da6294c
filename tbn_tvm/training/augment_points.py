"""Augmentation of clouds of points ``(B, features, points)``, the first three coordinates.

Qi et al., "PointNet" (arXiv:1612.00593), section 5.1: clouds turn about the axis that points up and
their points are moved a little. Steps are like those of :mod:`tbn_tvm.training.augment`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tbn_tvm.errors import UsageError


def rotate(x: Tensor, random: torch.Generator, up: int = 1) -> Tensor:
    """Turn each cloud about one axis by any angle; normals, where points have six features, too.

    Parameters
    ----------
    x : Tensor
        Clouds.
    up : int
        The axis: 1 (y) points up in ModelNet and ShapeNet, 2 (z) in S3DIS.
    """
    if up not in (0, 1, 2):
        raise UsageError(f"augmentation rotate:{up}: expected axis 0, 1 or 2")
    angle = 2 * math.pi * torch.rand(len(x), generator=random)
    cos, sin = (part.to(x)[:, None] for part in (angle.cos(), angle.sin()))
    turned = x.clone()
    for first in (0, 3) if x.shape[1] == 6 else (0,):
        a, b = first + (up + 1) % 3, first + (up + 2) % 3
        turned[:, a] = cos * x[:, a] - sin * x[:, b]
        turned[:, b] = sin * x[:, a] + cos * x[:, b]
    return turned


def jitter(
    x: Tensor, random: torch.Generator, deviation: float = 0.01, limit: float = 0.05
) -> Tensor:
    """Move each point by normal noise of this deviation, cut off at the limit."""
    noise = torch.randn(len(x), 3, x.shape[2], generator=random) * deviation
    moved = x.clone()
    moved[:, :3] += noise.clamp(-limit, limit).to(x)
    return moved


def resize(x: Tensor, random: torch.Generator, least: float = 0.8, most: float = 1.25) -> Tensor:
    """Scale each cloud by one factor between these two."""
    factor = least + (most - least) * torch.rand(len(x), generator=random)
    scaled = x.clone()
    scaled[:, :3] *= factor.to(x)[:, None, None]
    return scaled


def drop(x: Tensor, random: torch.Generator, most: float = 0.875) -> Tensor:
    """Lose up to this share of each cloud's points, a share of its own for each.

    Lost points become copies of the cloud's first, which no maximum over points notices. For
    classification only: targets of points would not follow.
    """
    shares = most * torch.rand(len(x), 1, generator=random)
    lost = torch.rand(len(x), x.shape[2], generator=random) < shares
    return torch.where(lost.to(x.device)[:, None], x[:, :, :1], x)


STEPS = {"rotate": rotate, "jitter": jitter, "resize": resize, "drop": drop}
"""Augmentations of points by the name that recipes give them."""
