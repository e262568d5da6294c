"""Augmentation of whole batches as tensors, on the training device.

Each step is a function of a batch ``(B, ...)`` and a generator on the CPU, so that a run draws the
same numbers on any device; a recipe names steps and their arguments: ``crop:4``, ``affine:10:0.1``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tbn_tvm.errors import UsageError
from tbn_tvm.training import augment_points

Step = Callable[[Tensor, torch.Generator], Tensor]


def crop(x: Tensor, random: torch.Generator, padding: int = 4) -> Tensor:
    """Move each image ``(B, C, H, W)`` by up to ``padding`` pixels; black comes in."""
    count, channels, height, width = x.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, count), generator=random).to(x.device)
    padded = F.pad(x, (padding,) * 4)
    rows = shifts[0, :, None] + torch.arange(height, device=x.device)
    columns = shifts[1, :, None] + torch.arange(width, device=x.device)
    return padded[
        torch.arange(count, device=x.device)[:, None, None, None],
        torch.arange(channels, device=x.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def flip(x: Tensor, random: torch.Generator) -> Tensor:
    """Mirror half of the images left to right."""
    mirrored = torch.rand(len(x), generator=random) < 0.5
    return torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)


def cutout(x: Tensor, random: torch.Generator, side: int = 8) -> Tensor:
    """Blacken a square anywhere in each image, perhaps across its edge.

    DeVries and Taylor, arXiv:1708.04552.
    """
    height, width = x.shape[2:]
    centres = torch.rand(2, len(x), generator=random).to(x.device)
    inside = [
        ((torch.arange(size, device=x.device) - (c * size).long()[:, None]) + side // 2)
        for size, c in zip((height, width), centres, strict=True)
    ]
    rows, columns = ((offset >= 0) & (offset < side) for offset in inside)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def affine(
    x: Tensor,
    random: torch.Generator,
    degrees: float = 10.0,
    scale: float = 0.1,
    shift: float = 0.1,
    shear: float = 0.0,
    share: float = 1.0,
) -> Tensor:
    """Rotate, scale, move and shear each image, with bilinear interpolation.

    Parameters
    ----------
    x : Tensor
        ``(B, C, H, W)``; bytes become float32 in [0, 1].
    degrees, shear : float
        Angles are uniform between minus this and this, in degrees.
    scale : float
        Sizes are uniform between ``1 - scale`` and ``1 + scale``.
    shift : float
        As a share of height and width, uniform between minus this and this.
    share : float
        Of the images that this is done to. What is left as it is keeps the sharp edges that
        interpolation takes away.
    """
    x = as_unit(x)
    if share < 1:
        chosen = (torch.rand(len(x), generator=random) < share).to(x.device)
        if not chosen.any():
            return x
        return x.index_put((chosen,), affine(x[chosen], random, degrees, scale, shift, shear))
    draws = torch.rand(5, len(x), generator=random, dtype=torch.float32) * 2 - 1
    angle, slant = (draws[i] * math.radians(limit) for i, limit in ((0, degrees), (1, shear)))
    size = 1 + draws[2] * scale
    # The grid spans -1 to 1, two units, and holds where each pixel comes from: the inverse map.
    moves = 2 * shift * draws[3:]
    cos, sin, tan = angle.cos() / size, angle.sin() / size, slant.tan()
    rows = (
        torch.stack([cos, -sin + cos * tan, moves[0]], 1),
        torch.stack([sin, cos + sin * tan, moves[1]], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1).to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def as_unit(x: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; what is float already stays as it is."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


STEPS = {
    "crop": crop,
    "flip": flip,
    "cutout": cutout,
    "affine": affine,
    **augment_points.STEPS,
}
"""Augmentations by the name that recipes give them."""


def parse_steps(names: Sequence[str]) -> list[Step]:
    """What a recipe's names stand for.

    Raises
    ------
    UsageError
        For an unknown name, or arguments that it does not take.
    """
    return [_parse(text) for text in names]


def _parse(text: str) -> Step:
    name, *values = text.split(":")
    if name not in STEPS:
        raise UsageError(f"unknown augmentation {name!r}: expected one of {', '.join(STEPS)}")
    step = STEPS[name]
    taken = list(inspect.signature(step).parameters.values())[2:]
    form = ":".join([name, *(parameter.name.upper() for parameter in taken)])
    if len(values) > len(taken):
        raise UsageError(f"augmentation {text!r}: expected {form}, with no more arguments")
    try:
        arguments = {
            parameter.name: type(parameter.default)(value)
            for parameter, value in zip(taken, values, strict=False)
        }
    except ValueError:
        raise UsageError(f"augmentation {text!r}: expected {form}, with numbers") from None
    if any(not 0 <= value < math.inf for value in arguments.values()):
        raise UsageError(f"augmentation {text!r}: its numbers must be 0 or more")
    return lambda x, random: step(x, random, **arguments)
