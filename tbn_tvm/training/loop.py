"""The one training loop: steps, epochs, evaluation.

Whatever is random in a step (augmentation, mixing, dropout) depends on the seed, the epoch, the
step and the process alone, and so does the order of samples. A run can therefore be cut after any
step: its state is the weights, the optimiser and the position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tbn_tvm.errors import TbnError
from tbn_tvm.training.data import DataSet, Split
from tbn_tvm.training.distributed import Processes
from tbn_tvm.training.losses import collected_penalties, distillation_loss, task_loss
from tbn_tvm.training.metrics import make_metric
from tbn_tvm.training.mixing import mix
from tbn_tvm.training.optim import make_optimiser, rate_at, set_rate
from tbn_tvm.training.preprocess import Preprocess
from tbn_tvm.training.recipe import Recipe


@dataclass
class Position:
    """Where a run is: epochs done, steps done of the next one, and the sum of its samples' losses
    so far, all processes' together."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0


class Trainer:
    """Trains a model in place.

    Parameters
    ----------
    model : nn.Module
        On the processes' device.
    recipe : Recipe
        How.
    data : DataSet
        On what.
    preprocess : Preprocess
        From the data set's samples to the model's inputs.
    group : Processes
        Among which batches are split.
    autocast : torch.dtype or None
        Of mixed precision; None for float32.
    teacher : nn.Module or None
        To distil from.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: DataSet,
        preprocess: Preprocess,
        group: Processes,
        autocast: torch.dtype | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model, self.position = model, Position()
        self._recipe, self._data, self._group = recipe, data, group
        self._preprocess, self._teacher = preprocess, teacher
        self._autocast = autocast
        self._train = data.train.to(group.device)
        self.optimiser = make_optimiser(model, recipe)
        self._scaler = torch.amp.GradScaler(
            group.device.type, enabled=autocast is torch.float16 and group.device.type == "cuda"
        )
        self.average = None
        if recipe.ema:
            update = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
        self._parallel = group.wrap(model)
        self.steps = len(self._order(0))

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the average, where there is one."""
        return self.model if self.average is None else self.average.module

    def state_dict(self) -> dict:
        """What :meth:`load_state_dict` goes on from."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "position": vars(self.position).copy(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])

    def train_epoch(
        self, stops: Callable[[], bool] | None, report: Callable[[], None]
    ) -> float | None:
        """Finish the epoch at hand.

        Parameters
        ----------
        stops : callable or None
            Asked after each step whether to leave; None on all processes for never.
        report : callable
            Called after each step.

        Returns
        -------
        float or None
            The mean training loss; None where it was stopped.

        Raises
        ------
        TbnError
            Where the loss is no longer finite.
        """
        at = self.position
        order = self._order(at.epoch)
        own = [self._group.share(indices) for indices in order[at.step :]]
        self._parallel.train()
        # Read from the device once an epoch: each reading waits for all work queued there.
        before = at.loss if self._group.writes else 0.0
        total = torch.tensor(before, dtype=torch.float64, device=self._group.device)
        seed = _seed(self._recipe.seed, at.epoch)
        batches = self._train.batches(own, seed)
        for number, (inputs, targets) in enumerate(batches, at.step):
            total += self._step(inputs, targets, number, len(order[number]))
            at.step = number + 1
            report()
            if at.step < len(order) and self._group.agree_to(stops):
                at.loss = float(self._group.add_up(total))
                return None
        mean = float(self._group.add_up(total)) / sum(map(len, order))
        if not np.isfinite(mean):
            raise TbnError(
                f"the loss became {mean} in epoch {at.epoch + 1}; use a lower learning rate or "
                "clip_norm"
            )
        self.position = Position(at.epoch + 1)
        return mean

    def _step(self, inputs: tuple[Tensor, ...], targets: Tensor, number: int, count: int) -> Tensor:
        """One step on this process's part of a batch of ``count``; the sum of its losses."""
        recipe, group, at = self._recipe, self._group, self.position
        seed = _seed(recipe.seed, at.epoch, number, group.rank)
        torch.manual_seed(seed)  # dropout's
        random = torch.Generator().manual_seed(seed)
        inputs = tuple(x.to(group.device, non_blocking=True) for x in inputs)
        targets = targets.to(group.device, non_blocking=True)
        plain = at.epoch >= recipe.epochs - recipe.plain_epochs
        inputs = self._preprocess(inputs, None if plain else random)
        if (recipe.mixup or recipe.cutmix) and not plain:
            mixed, targets = mix(
                inputs[0], targets, self._data.classes, random, recipe.mixup, recipe.cutmix
            )
            inputs = (mixed, *inputs[1:])
        inputs = self._preprocess.shape(inputs)
        set_rate(self.optimiser, rate_at(recipe, at.epoch + number / self.steps))
        with self._mixed_precision():
            with collected_penalties(self.model, recipe.penalty) as penalties:
                outputs = self._parallel(*inputs)
            loss = task_loss(outputs, targets, recipe)
            if self._teacher is not None and recipe.distill:
                with torch.no_grad():
                    taught = self._teacher(*inputs)
                distance = distillation_loss(outputs, taught, recipe)
                loss = torch.lerp(loss, distance, recipe.distill)
            loss = loss + sum(penalties)
        # Processes average their gradients; parts of a batch may differ in size.
        share = len(targets) * group.count / count
        self.optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss * share).backward()
        if recipe.clip_norm:
            self._scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach().double() * len(targets)

    @torch.no_grad()
    def evaluate(self, split: Split) -> dict[str, float]:
        """The metrics of a split, each process having done its part."""
        group, model = self._group, self.evaluated
        group.copy_buffers(model)
        model.eval()
        metric = make_metric(self._recipe.task, self._data, group.device)
        order = group.share(torch.arange(len(split))).split(self._recipe.batch_size)
        for inputs, targets in split.batches(order, None):
            inputs = tuple(x.to(group.device) for x in inputs)
            # In float32, as what is exported computes.
            outputs = model(*self._preprocess.shape(self._preprocess(inputs)))
            metric.add(outputs, targets.to(group.device))
        group.add_up(metric.sums)
        return metric.result()

    def _order(self, epoch: int) -> list[Tensor]:
        """The samples of each step of an epoch."""
        random = torch.Generator().manual_seed(_seed(self._recipe.seed, epoch))
        batches = list(
            torch.randperm(len(self._train), generator=random).split(self._recipe.batch_size)
        )
        # Every process needs a sample, and batch norm two.
        least = 2 * self._group.count
        if len(batches) > 1 and len(batches[-1]) < least:
            batches.pop()
        if len(batches[-1]) < self._group.count:
            raise TbnError(
                f"{len(self._train)} training samples in batches of {self._recipe.batch_size}: "
                f"expected at least one for each of {self._group.count} processes"
            )
        return batches

    def _mixed_precision(self) -> torch.autocast:
        enabled = self._autocast is not None
        return torch.autocast(self._group.device.type, self._autocast, enabled=enabled)


def _seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
