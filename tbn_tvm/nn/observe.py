"""Running a model once and looking at what its modules are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@torch.no_grad()
def run_once(model: nn.Module, samples: tuple[Tensor, ...], handles: Iterable = ()):
    """A forward pass in eval mode; every module's mode is as before afterwards.

    Parameters
    ----------
    model : nn.Module
        Its output is returned.
    samples : tuple of Tensor
        Its inputs.
    handles : iterable
        Of hooks, which are removed afterwards.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return model(*samples)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


@dataclass
class Observation:
    """What modules were given in one pass.

    Attributes
    ----------
    calls : Counter
        How often each module was called.
    inputs : dict
        Of the last call of each module, where they are tensors only.
    output
        Of the model.
    """

    calls: Counter = field(default_factory=Counter)
    inputs: dict[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)
    output: object = None


def observe(model: nn.Module, samples: tuple[Tensor, ...]) -> Observation:
    """Run a model once and note its modules' calls and inputs."""
    seen = Observation()

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.calls[module] += 1
        if not kwargs and all(isinstance(arg, Tensor) for arg in args):
            seen.inputs[module] = args

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True) for module in model.modules()
    ]
    seen.output = run_once(model, samples, handles)
    return seen


def tensors_of(value) -> list[Tensor]:
    """The tensors in a model's output."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_of(part)]
    return []
