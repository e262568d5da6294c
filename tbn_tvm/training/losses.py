"""What is minimised: the task's loss, and the distance to a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from tbn_tvm.training.recipe import Recipe


def task_loss(outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
    """Mean over samples (and points, or steps and channels).

    Parameters
    ----------
    outputs : Tensor
        Logits ``(B, classes)`` or ``(B, classes, points)``; values ``(B, horizon, channels)``.
    targets : Tensor
        int64 classes of the same shape without the axis of classes, or probabilities ``(B,
        classes)``; values.
    recipe : Recipe
        Its task and label smoothing.
    """
    if recipe.task == "forecasting":
        return F.mse_loss(outputs.float(), targets)
    return F.cross_entropy(outputs.float(), targets, label_smoothing=recipe.label_smoothing)


@contextlib.contextmanager
def collected_penalties(model: nn.Module, weight: float) -> Iterator[list[Tensor]]:
    """A list that takes what a model's layers add to the loss while it runs inside.

    Parameters
    ----------
    model : nn.Module
        A layer takes part by a method ``penalty`` that makes a scalar of the layer's output.
    weight : float
        Of each penalty; with 0 none is computed.
    """
    found: list[Tensor] = []

    def collect(layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        found.append(weight * layer.penalty(output))

    taking_part = [layer for layer in model.modules() if weight and hasattr(layer, "penalty")]
    handles = [layer.register_forward_hook(collect) for layer in taking_part]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def distillation_loss(outputs: Tensor, taught: Tensor, recipe: Recipe) -> Tensor:
    """How far the outputs are from a teacher's.

    For logits the divergence from the teacher's soft targets at the recipe's temperature, times
    its square, so that gradients keep their size (Hinton et al., arXiv:1503.02531); for values the
    mean squared difference.
    """
    if recipe.task == "forecasting":
        return F.mse_loss(outputs.float(), taught.float())
    heat = recipe.temperature
    student, teacher = (F.log_softmax(x.float() / heat, 1) for x in (outputs, taught))
    divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(1)
    return divergence.mean() * heat**2
