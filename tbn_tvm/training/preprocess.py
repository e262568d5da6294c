"""From what a data set holds to what a model takes, on the training device."""

from __future__ import annotations

import torch
from torch import Tensor

from tbn_tvm.training.augment import as_unit, parse_steps
from tbn_tvm.training.data import DataSet
from tbn_tvm.training.recipe import Recipe


class Preprocess:
    """Scales, augments and shapes the first input of a batch; other inputs pass.

    Parameters
    ----------
    recipe : Recipe
        Its augmentation and normalisation.
    data : DataSet
        Mean and deviation of its images.
    flat : bool
        Whether the model takes vectors: images are then flattened, augmentation done.
    """

    def __init__(self, recipe: Recipe, data: DataSet, flat: bool) -> None:
        self._steps = parse_steps(recipe.augment)
        self._standard, self._flat = recipe.normalise == "standard", flat
        self._mean = torch.tensor(data.mean)[:, None, None]
        self._deviation = torch.tensor(data.deviation)[:, None, None]

    def __call__(
        self, inputs: tuple[Tensor, ...], random: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Scale and augment a batch; :meth:`shape` is the last step.

        Parameters
        ----------
        inputs : tuple of Tensor
            As the data set holds them, on the training device.
        random : torch.Generator, optional
            Of the augmentation, on the CPU; None for none of it.
        """
        x, *others = inputs
        if random is not None:
            for step in self._steps:
                x = step(x, random)
        x = as_unit(x)
        if self._standard and x.dim() == 4:
            x = (x - self._mean.to(x.device)) / self._deviation.to(x.device)
        return (x, *others)

    def shape(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A batch in the shape and memory format that suit the model."""
        x, *others = inputs
        if self._flat:
            x = x.flatten(1)
        elif x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return (x, *others)
