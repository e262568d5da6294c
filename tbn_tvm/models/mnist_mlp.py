"""The paper's microcontroller model and its training (arXiv:2407.12075, section 5).

784-128-10, no biases, ReLU; the first layer tiled with p = 4, the second (1,280 weights, fewer
than lambda) binary. 3,316 bytes of weights. Inputs are pixels / 255.

The default recipe is ours: Adam with a cosine decay, then coordinate descent over the bits. The
authors' own (Adadelta with a step decay) is ``schedule="paper"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.models.mnist import Digits
from tbn_tvm.models.polish import Polisher
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.tiling import largest_divisor


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    epochs, batch_size : int
        Passes over the training images; images a step.
    learning_rate : float
        At the start.
    schedule : {"cosine", "paper"}
        Adam with a cosine decay to zero, or the authors' Adadelta with a step decay of 0.75
        every 4 epochs.
    seed : int
        Of initialisation and shuffling.
    p : int
        Compression factor of the first layer.
    polish_sweeps : int
        Sweeps of coordinate descent over the bits after training, at most (see
        :mod:`tbn_tvm.models.polish`); 0 for none. Where the tile is not whole rows there are none.
        They see every training image twice, once moved by a pixel: without, they fit the training
        set and not digits.
    """

    epochs: int = 200
    batch_size: int = 100
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    seed: int = 1
    p: int = 4
    polish_sweeps: int = 10


HIDDEN = 128
_WEIGHTS = 784 * HIDDEN
_PAPER = Recipe(epochs=50, batch_size=64, learning_rate=1.0, schedule="paper", polish_sweeps=0)


def recipe(*, schedule: str = "cosine", **changes) -> Recipe:
    """A schedule's recipe with some of its settings changed; None keeps a setting.

    Raises
    ------
    UsageError
        For a setting that no training can have.
    """
    if schedule not in ("cosine", "paper"):
        raise UsageError(f"schedule {schedule!r}: expected cosine or paper")
    base = _PAPER if schedule == "paper" else Recipe()
    chosen = replace(base, **{name: value for name, value in changes.items() if value is not None})
    if not 0 < chosen.learning_rate < math.inf:
        raise UsageError(f"learning rate {chosen.learning_rate}: expected a number above 0")
    if not 0 <= chosen.seed < 2**63:
        raise UsageError(f"seed {chosen.seed}: expected a number from 0 to 2**63 - 1")
    if _WEIGHTS % chosen.p:
        raise UsageError(
            f"p = {chosen.p} does not divide the {_WEIGHTS:,} weights of the first layer; the "
            f"largest divisor below it is {largest_divisor(_WEIGHTS, chosen.p)}"
        )
    return chosen


def recipe_fields(chosen: Recipe) -> dict:
    """For JSON."""
    return asdict(chosen)


@dataclass(frozen=True)
class Progress:
    """Where a run stands: after so many steps (epochs, then sweeps) of at most so many."""

    step: int
    steps: int
    phase: str
    loss: float
    test_accuracy: float


class MnistMlp(nn.Module):
    """Untrained: ``(B, 784) -> (B, 10)``.

    Parameters
    ----------
    p : int
        Compression factor of the first layer.
    hidden : int
        Width of the hidden layer. The paper has 128; at ``p = 4`` these are 32 and their
        multiples.
    """

    def __init__(self, p: int = 4, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.fc1 = TiledLinear(784, hidden, bias=False, p=p)
        self.fc2 = TiledLinear(hidden, 10, bias=False, p=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def train(
    digits: Digits,
    recipe: Recipe,
    checkpoint: Path,
    report: Callable[[Progress], None] | None = None,
) -> tuple[MnistMlp, list[dict]]:
    """Train, or go on from a checkpoint.

    Parameters
    ----------
    digits : Digits
        Images and labels.
    recipe : Recipe
        How to train.
    checkpoint : Path
        Written after every epoch; an existing one of the same recipe is resumed, so that an
        interrupted run ends with the same weights as one that was not.
    report : callable, optional
        Called after every epoch and sweep.

    Returns
    -------
    MnistMlp
        The trained, unfrozen model.
    list of dict
        Phase, loss and test accuracy after each epoch and sweep. Test accuracy is only looked
        at: nothing is chosen by it.
    """
    # The matrices are so small that a second thread costs more than it does.
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model = MnistMlp(recipe.p)
    optimiser, scheduler = _optimiser(model, recipe)
    # Shuffling has a generator of its own, whose state is part of the checkpoint.
    shuffler = torch.Generator().manual_seed(recipe.seed)
    log: list[dict] = []
    if checkpoint.exists():
        state = _load_checkpoint(checkpoint, recipe)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        scheduler.load_state_dict(state["scheduler"])
        shuffler.set_state(state["shuffler"])
        log = state["log"]
    images, labels = digits.train_images, digits.train_labels
    sweeps = recipe.polish_sweeps if HIDDEN % recipe.p == 0 else 0

    def finish_step(phase: str, loss: float, **details) -> None:
        accuracy = evaluate(model, digits)
        log.append({"phase": phase, "loss": loss, "test_accuracy": accuracy, **details})
        _save_checkpoint(
            checkpoint,
            {
                "recipe": asdict(recipe),
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "scheduler": scheduler.state_dict(),
                "shuffler": shuffler.get_state(),
                "log": log,
            },
        )
        if report is not None:
            report(Progress(len(log), recipe.epochs + sweeps, phase, loss, accuracy))

    for _ in range(len(log), recipe.epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(images), generator=shuffler)
        for batch in order.split(recipe.batch_size):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        scheduler.step()
        finish_step("epoch", total / len(images))

    if len(log) < recipe.epochs + sweeps:
        images, labels = torch.cat([images, moved_by_a_pixel(images)]), labels.repeat(2)
    for _ in range(len(log), recipe.epochs + sweeps):
        if log[-1].get("flips") == 0:
            break  # no bit is left whose flip helps
        flips, loss = Polisher(model.fc1, model.fc2, images, labels).sweep()
        finish_step("sweep", loss, flips=flips)
    return model, log


def moved_by_a_pixel(images: torch.Tensor) -> torch.Tensor:
    """Each image, shape ``(N, 784)``, moved right, left, down or up: the same way in every run."""
    ways = torch.randint(0, 4, (len(images),), generator=torch.Generator().manual_seed(0))
    moved = images.view(-1, 28, 28).clone()
    for number, way in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        # Digits are centred: what goes round the edge is the empty border.
        moved[ways == number] = torch.roll(moved[ways == number], way, (1, 2))
    return moved.view(-1, 784)


@torch.no_grad()
def evaluate(model: nn.Module, digits: Digits) -> float:
    """The share of test images that the model labels rightly."""
    model.eval()
    predicted = torch.cat([model(batch).argmax(1) for batch in digits.test_images.split(2000)])
    return float((predicted == digits.test_labels).double().mean())


def export(model: nn.Module, path: Path) -> torch.export.ExportedProgram:
    """Freeze a trained model and save it as a ``.pt2`` with a dynamic batch."""
    frozen = freeze(model)
    program = torch.export.export(
        frozen,
        (torch.zeros(2, 784),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.export.save(program, file)
    partial.replace(path)
    return program


def _optimiser(model: nn.Module, recipe: Recipe):
    if recipe.schedule == "paper":
        optimiser = torch.optim.Adadelta(model.parameters(), lr=recipe.learning_rate)
        return optimiser, torch.optim.lr_scheduler.StepLR(optimiser, 4, 0.75)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs)


def _load_checkpoint(path: Path, recipe: Recipe) -> dict:
    try:
        state = torch.load(path, weights_only=True)
        kept = state["recipe"]
    except Exception as error:
        raise TbnError(
            f"{path}: not a checkpoint of this recipe, or damaged ({type(error).__name__}); "
            "remove it to start again"
        ) from None
    if kept != asdict(recipe):
        different = [k for k, v in asdict(recipe).items() if kept.get(k) != v]
        raise UsageError(
            f"{path}: holds a run with other settings ({', '.join(different)}); give the same "
            "ones to resume it, or remove it to start again"
        )
    return state


def _save_checkpoint(path: Path, state: dict) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)
