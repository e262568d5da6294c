"""What is reported of a model: sums over batches, so that processes can add theirs up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tbn_tvm.training.data import DataSet


class Metric:
    """Sums over the samples seen.

    Attributes
    ----------
    sums : Tensor
        float64, any shape; those of several processes may be added.
    main : str
        The result that weights are selected by.
    rising : bool
        Whether more of it is better.
    """

    main: str
    rising: bool
    sums: Tensor

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        raise NotImplementedError

    def result(self) -> dict[str, float]:
        """Figures by name."""
        raise NotImplementedError


class Accuracy(Metric):
    """Shares of samples labelled rightly, first and (from 100 classes on) within the first five."""

    main, rising = "accuracy", True

    def __init__(self, classes: int, device: torch.device) -> None:
        self._top_five = classes >= 100
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        outputs = outputs.float()
        loss = F.cross_entropy(outputs, targets, reduction="sum")
        first = (outputs.argmax(1) == targets).sum()
        five = first
        if self._top_five:
            five = (outputs.topk(5, 1).indices == targets[:, None]).sum()
        count = torch.tensor(len(targets), device=outputs.device)
        self.sums += torch.stack([loss, first, five, count]).double()

    def result(self) -> dict[str, float]:
        loss, first, five, count = self.sums.tolist()
        found = {"loss": loss / count, "accuracy": first / count}
        return {**found, "accuracy_5": five / count} if self._top_five else found


class Overlap(Metric):
    """Mean intersection over union, of classes or (with ``parts``) of shapes; share of points.

    With parts, as on ShapeNet (Qi et al., arXiv:1612.00593): of each shape the mean over the parts
    of its category, a part that neither the shape nor the prediction has counting as 1; then the
    mean over shapes. The prediction is the best among those parts.

    Parameters
    ----------
    classes : int
        Of points.
    parts : mapping of int to sequence of int
        Classes by category; empty for the mean over classes of the whole split.
    device : torch.device
        Of the sums.
    """

    main, rising = "mean_iou", True

    def __init__(
        self, classes: int, parts: Mapping[int, Sequence[int]], device: torch.device
    ) -> None:
        self._classes, self._parts = classes, parts
        # Confusion counts by true and predicted class, then: sum over shapes, shapes.
        self.sums = torch.zeros(classes * classes + 2, dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        outputs = outputs.float()
        predicted = outputs.argmax(1)
        if self._parts:
            predicted = self._add_shapes(outputs, targets)
        cells = (targets * self._classes + predicted).flatten()
        self.sums[:-2] += torch.bincount(cells, minlength=self._classes**2).double()

    def _add_shapes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        predicted = torch.empty_like(targets)
        by_part = {part: parts for parts in self._parts.values() for part in parts}
        for index, (scores, truth) in enumerate(zip(outputs, targets, strict=True)):
            parts = torch.tensor(by_part[int(truth[0])], device=truth.device)
            guess = parts[scores[parts].argmax(0)]
            true, guessed = truth[None] == parts[:, None], guess[None] == parts[:, None]
            union = (true | guessed).sum(1)
            share = torch.where(union > 0, (true & guessed).sum(1) / union.clamp(min=1), 1.0)
            self.sums[-2] += share.double().mean()
            self.sums[-1] += 1
            predicted[index] = guess
        return predicted

    def result(self) -> dict[str, float]:
        confusion = self.sums[:-2].reshape(self._classes, self._classes)
        hit = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hit
        mean = float((hit[union > 0] / union[union > 0]).mean())
        if self._parts:
            mean = float(self.sums[-2] / self.sums[-1])
        return {"accuracy": float(hit.sum() / confusion.sum()), "mean_iou": mean}


class ForecastError(Metric):
    """Mean squared and mean absolute error over all samples, steps and channels."""

    main, rising = "mse", False

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        error = (outputs.float() - targets).double()
        count = torch.tensor(error.numel(), device=error.device, dtype=torch.float64)
        self.sums += torch.stack([error.square().sum(), error.abs().sum(), count])

    def result(self) -> dict[str, float]:
        squared, absolute, count = self.sums.tolist()
        return {"mse": squared / count, "mae": absolute / count}


def make_metric(task: str, data: DataSet, device: torch.device) -> Metric:
    """The metric of a task."""
    if task == "forecasting":
        return ForecastError(device)
    if task == "segmentation":
        return Overlap(data.classes, data.parts, device)
    return Accuracy(data.classes, device)
