"""Optimisers, and the learning rate as a function of the epoch."""

from __future__ import annotations

import math

import torch
from torch import nn

from tbn_tvm.nn.layers import TiledLayer
from tbn_tvm.training.recipe import Recipe

_DECAYING = (TiledLayer, nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; only weights of linear layers and convolutions decay.

    The learning rate of a group is its entry ``scale`` times the run's.
    """
    decaying = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _DECAYING)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1
    }
    magnitudes = {
        id(module.magnitudes) for module in model.modules() if isinstance(module, TiledLayer)
    }
    scales = {identity: recipe.magnitude_rate for identity in magnitudes}
    groups: dict[tuple[bool, float], dict] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decays, scale = id(parameter) in decaying, scales.get(id(parameter), 1.0)
        decay = recipe.weight_decay if decays else 0.0
        made = {"params": [], "weight_decay": decay, "scale": scale}
        groups.setdefault((decays, scale), made)["params"].append(parameter)
    groups = list(groups.values())
    rate = recipe.learning_rate
    if recipe.optimiser == "sgd":
        momentum = recipe.momentum
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adadelta": torch.optim.Adadelta,
    }
    return kinds[recipe.optimiser](groups, lr=rate)


def rate_at(recipe: Recipe, epoch: float) -> float:
    """The learning rate after so many epochs, fractions of one included.

    A function of the position alone, so that nothing of a schedule has to be stored.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.learning_rate * epoch / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.step_factor ** (int(epoch) // recipe.step_epochs)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    length = recipe.epochs - recipe.warmup_epochs
    done = (epoch - recipe.warmup_epochs) / length if length > 0 else 1.0
    factor = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * factor)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its multiple of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
