"""Data sets, read from the files that people have.

A reader is a function ``load(folder, **options) -> DataSet`` in a module of its own, named in
:data:`READERS`. It raises :class:`tbn_tvm.errors.TbnError` for what is missing or malformed, with
the path, what was found and what was expected.

A split gives batches (:class:`Split`). What fits into memory is a :class:`TensorSplit`: images as
uint8 ``(N, C, H, W)``, which the training device scales and augments a batch at a time; points and
series as float32, which pass as they are, so the reader standardises them. Targets are int64
``(N,)`` for classification and ``(N, points)`` for segmentation, float32 ``(N, horizon, channels)``
for forecasting. What does not fit reads files batch by batch: see
:mod:`tbn_tvm.training.data.imagenet`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tbn_tvm.errors import TbnError, UsageError

Batch = tuple[tuple[Tensor, ...], Tensor]
"""The model's inputs, and the target; the first axis of each is the batch."""

READERS = {
    "cifar10": "tbn_tvm.training.data.cifar",
    "csv": "tbn_tvm.training.data.series",
    "etth1": "tbn_tvm.training.data.ett",
    "imagenet": "tbn_tvm.training.data.imagenet",
    "mnist": "tbn_tvm.training.data.mnist",
    "modelnet40": "tbn_tvm.training.data.modelnet",
    "s3dis": "tbn_tvm.training.data.s3dis",
    "shapenet-part": "tbn_tvm.training.data.shapenet_part",
}
"""Modules by the data set's name; each has ``load``."""


class Split(Protocol):
    """Samples of one kind: training, validation or test."""

    def __len__(self) -> int: ...

    def batches(self, order: Sequence[Tensor], seed: int | None) -> Iterator[Batch]:
        """The samples with these indices.

        Parameters
        ----------
        order : sequence of Tensor
            int64 indices, one tensor a batch.
        seed : int or None
            Of augmentation that is done while reading; None for none of it. The same seed and
            index give the same sample.
        """
        ...

    def subset(self, indices: Tensor) -> Split:
        """A split of some of the samples."""
        ...

    def to(self, device: torch.device) -> Split:
        """On a device, where it fits; else where it was."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """Samples in memory.

    Attributes
    ----------
    inputs : tuple of Tensor
        The model's inputs in order, each with one sample a row. Views (``Tensor.unfold``, say) are
        never made contiguous as a whole.
    targets : Tensor
        One row a sample.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Sequence[Tensor], seed: int | None = None) -> Iterator[Batch]:
        """See :class:`Split`; augmentation is the training device's."""
        for indices in order:
            chosen = indices.to(self.targets.device)
            yield tuple(x[chosen] for x in self.inputs), self.targets[chosen]

    def subset(self, indices: Tensor) -> TensorSplit:
        """See :class:`Split`."""
        return TensorSplit(tuple(x[indices] for x in self.inputs), self.targets[indices])

    def to(self, device: torch.device) -> TensorSplit:
        """See :class:`Split`."""
        return TensorSplit(tuple(x.to(device) for x in self.inputs), self.targets.to(device))


@dataclass(frozen=True)
class DataSet:
    """What a reader returns.

    Attributes
    ----------
    train, test : Split
        Test data is looked at and never selected on.
    validation : Split or None
        Where the data set comes with one.
    classes : int
        Of a classification or segmentation; 0 for forecasting.
    mean, deviation : sequence of float
        Of images in [0, 1], a channel.
    parts : mapping
        For part segmentation: the parts (classes) that each category of shape has; the mean
        intersection over union of a shape is then taken over its category's.
    """

    train: Split
    test: Split
    validation: Split | None = None
    classes: int = 0
    mean: Sequence[float] = (0.0,)
    deviation: Sequence[float] = (1.0,)
    parts: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def with_validation(self, share: float, seed: int) -> DataSet:
        """Hold out a share of the training split, unless there is a validation split already.

        The samples held out depend on the seed and the number of samples alone.
        """
        if self.validation is not None or not share:
            return self
        count = round(share * len(self.train))
        if not 0 < count < len(self.train):
            raise UsageError(
                f"validation {share}: {count} of {len(self.train)} training samples; expected a "
                "share that leaves some on both sides"
            )
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        held, kept = order[:count].sort().values, order[count:].sort().values
        return replace(self, train=self.train.subset(kept), validation=self.train.subset(held))


def load(name: str, folder: Path, **options) -> DataSet:
    """Read a data set.

    Parameters
    ----------
    name : str
        One of :data:`READERS`.
    folder : Path
        Where its files are.
    **options
        Of the reader.

    Raises
    ------
    UsageError
        For an unknown name or option.
    TbnError
        Where files are missing or malformed.
    """
    if name not in READERS:
        raise UsageError(f"unknown data set {name!r}: expected one of {', '.join(READERS)}")
    reader = importlib.import_module(READERS[name])
    try:
        return reader.load(Path(folder), **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UsageError(f"data set {name}: {error}") from None


def require_folder(folder: Path, wanted: str) -> None:
    """Refuse what is no folder, and say what was expected in it."""
    if not folder.is_dir():
        raise TbnError(f"{folder}: no such folder; expected {wanted} in it")
