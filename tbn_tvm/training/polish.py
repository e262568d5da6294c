"""What a recipe may do to a trained model's bits after the last epoch.

A recipe names a function ``polish(model, inputs, targets) -> dict``, where ``inputs`` is the whole
training split as the model takes it, without augmentation, and ``targets`` its classes, all on the
CPU. It changes the model in place and returns the training loss as ``loss`` and the number of bits
that it flipped as ``flips``; it is called again until that is 0, or as often as the recipe says. A
call may depend on the model and the data alone, so that a run can stop and go on between any two.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.training.data import DataSet, TensorSplit
from tbn_tvm.training.preprocess import Preprocess

Polish = Callable[[nn.Module, Tensor, Tensor], dict]


def find_polish(name: str) -> Polish:
    """The function of a ``package.module:function``.

    Raises
    ------
    UsageError
        Where there is none.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError):
        raise UsageError(
            f"polish {name!r}: no such function; expected package.module:function"
        ) from None


def whole_split(data: DataSet, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """The training split as the model takes it, on the CPU.

    Raises
    ------
    UsageError
        Where the data set does not fit into memory, or the model has several inputs.
    """
    if not isinstance(data.train, TensorSplit) or len(data.train.inputs) != 1:
        raise UsageError("polish: expected one input and a data set that is held in memory")
    parts = [preprocess.shape(preprocess((x,)))[0] for x in data.train.inputs[0].split(4096)]
    return torch.cat(parts), data.train.targets
