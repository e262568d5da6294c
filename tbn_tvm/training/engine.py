"""A whole run: data in, epochs, polishing, an exported model out; resumable throughout."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.registry import find_model
from tbn_tvm.training.build import build_model, check_fit, load_teacher
from tbn_tvm.training.checkpoint import load_checkpoint, save_checkpoint
from tbn_tvm.training.data import DataSet, load
from tbn_tvm.training.distributed import Processes, processes
from tbn_tvm.training.export import export
from tbn_tvm.training.log import describe, write_log
from tbn_tvm.training.loop import Trainer
from tbn_tvm.training.metrics import make_metric
from tbn_tvm.training.optim import rate_at
from tbn_tvm.training.polish import find_polish, whole_split
from tbn_tvm.training.preprocess import Preprocess
from tbn_tvm.training.recipe import Recipe

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """How a run is carried out; what it computes is the recipe's.

    Attributes
    ----------
    twin : bool
        Train the float twin: the same recipe with ordinary layers.
    device : {"auto", "cpu", "cuda"}
        ``auto`` takes a GPU where there is one.
    precision : {"auto", "fp32", "bf16", "fp16"}
        Of layers' arithmetic while training; weights stay float32. ``auto`` is bf16 on a GPU that
        has it, fp16 on another, fp32 on a CPU.
    time_limit : float or None
        Minutes after which the run stops at the end of a step, to be resumed.
    log : Path or None
        Where the JSON log goes.
    """

    twin: bool = False
    device: str = "auto"
    precision: str = "auto"
    time_limit: float | None = None
    log: Path | None = None


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for a progress bar: after so many of so many steps, sweeps included."""

    done: int
    total: int
    phase: str
    row: dict | None


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes
    ----------
    finished : bool
        False where the time limit stopped it; the same call goes on.
    log : dict
        As written to the log file.
    writes : bool
        Whether this process is the one that writes and reports.
    """

    finished: bool
    log: dict
    writes: bool = True


def run(
    recipe: Recipe,
    data_folder: Path,
    output: Path,
    options: Options = Options(),
    report: Callable[[Progress], None] = lambda _progress: None,
) -> Result:
    """Train by a recipe, or go on from the checkpoint beside the output, and export.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    data_folder : Path
        Where the data set is.
    output : Path
        The ``.pt2`` to write. Until it is whole, ``<output>.checkpoint`` holds the run's state.
    options : Options
        How to carry it out.
    report : callable
        Called after every step and sweep, in the first process only.

    Raises
    ------
    TbnError
        Where data, checkpoint or an initial model cannot be used, or a file cannot be written.
    """
    with processes(options.device) as group:
        # Ahead of the data: what is wrong with a recipe shows at once.
        model = build_model(recipe, options.twin)
        data = load(recipe.data, data_folder, **recipe.data_options)
        data = data.with_validation(recipe.validation, recipe.seed)
        return _Run(recipe, model, data, output, options, report, group).go()


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: DataSet,
        output: Path,
        options: Options,
        report: Callable[[Progress], None],
        group: Processes,
    ) -> None:
        self._recipe, self._data, self._output = recipe, data, output
        self._options, self._report, self._group = options, report, group
        if recipe.select == "best" and data.validation is None:
            raise UsageError(
                "select best: needs a validation split; set validation to the share of training "
                "samples to hold out"
            )
        self._checkpoint = output.with_name(output.name + ".checkpoint")
        self._started = time.monotonic()
        self._spent, self._rows = 0.0, []
        self._best: dict | None = None
        flat = len(find_model(recipe.model).input_shapes[0]) == 1
        self._preprocess = Preprocess(recipe, data, flat)
        precision = _precision(options.precision, group.device)
        sizes = {
            name: len(split)
            for name in ("train", "validation", "test")
            if (split := getattr(data, name)) is not None
        }
        # What a recipe says of itself, and of other runs, makes no difference to this one.
        settings = {k: v for k, v in recipe.to_dict().items() if k not in ("about", "tuning")}
        self._identity = {
            **settings,
            "float": options.twin,
            "precision": precision,
            "samples": sizes,
        }
        if recipe.init and recipe.calibration and not options.twin:
            model = build_model(recipe, False, self._samples(recipe.calibration))
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        inputs, targets = next(data.test.batches([torch.arange(2) % len(data.test)], None))
        self._example = self._preprocess.shape(self._preprocess(inputs))
        check_fit(model, self._example, targets, data, recipe)
        model = model.to(group.device)
        teacher = load_teacher(recipe, group.device) if recipe.teacher else None
        self._trainer = Trainer(
            model, recipe, data, self._preprocess, group, _PRECISIONS[precision], teacher
        )
        self._sweeps = recipe.polish_sweeps if recipe.polish and not options.twin else 0

    def _samples(self, count: int) -> tuple[torch.Tensor, ...]:
        """Inputs of the model, from the first training samples."""
        split = self._data.train
        order = [torch.arange(min(count, len(split)))]
        inputs, _ = next(split.batches(order, None))
        return self._preprocess.shape(self._preprocess(inputs))

    def go(self) -> Result:
        recipe, trainer = self._recipe, self._trainer
        if self._checkpoint.exists():
            self._resume(load_checkpoint(self._checkpoint, self._identity))
        stops = self._out_of_time if self._options.time_limit is not None else None
        while trainer.position.epoch < recipe.epochs:
            loss = trainer.train_epoch(stops, self._step_done)
            if loss is None:
                self._save()
                return self._stopped()
            self._epoch_done(loss)
            if self._group.agree_to(stops):
                return self._stopped()
        model = self._chosen()
        if self._sweeps and not self._polished(model, stops):
            return self._stopped()
        log = {**self._log(), "result": self._rows[-1].get("test")}
        if self._group.writes:
            export(model, self._example, self._output)
            if self._options.log is not None:
                write_log(self._options.log, log)
            self._checkpoint.unlink(missing_ok=True)
        self._group.wait()
        return Result(True, log, self._group.writes)

    def _stopped(self) -> Result:
        return Result(False, self._log(), self._group.writes)

    # -- epochs ------------------------------------------------------------------------------

    def _epoch_done(self, loss: float) -> None:
        recipe, done = self._recipe, self._trainer.position.epoch
        # The last step's.
        rate = rate_at(recipe, done - 1 / self._trainer.steps)
        row = {"phase": "epoch", "loss": loss, "learning_rate": rate}
        if done % recipe.evaluate_every == 0 or done == recipe.epochs:
            self._evaluate(row)
        self._rows.append(row)
        self._save()
        self._tell("epoch", row)

    def _evaluate(self, row: dict) -> None:
        """Add the figures of the held-out splits, and keep the weights if they are the best."""
        trainer, data = self._trainer, self._data
        row["test"] = trainer.evaluate(data.test)
        if data.validation is None:
            return
        row["validation"] = trainer.evaluate(data.validation)
        if self._recipe.select != "best":
            return
        metric = make_metric(self._recipe.task, data, self._group.device)
        value = row["validation"][metric.main] * (1 if metric.rising else -1)
        if self._best is None or value > self._best["value"]:
            weights = {k: v.cpu().clone() for k, v in trainer.evaluated.state_dict().items()}
            self._best = {
                "value": value,
                "epoch": trainer.position.epoch,
                "model": weights,
                "test": row["test"],
            }

    def _chosen(self) -> nn.Module:
        """The weights that training ends with; with ``select="best"`` a row says which."""
        model = self._trainer.evaluated
        polishing = any(row["phase"] == "sweep" for row in self._rows)
        if self._best is not None and not polishing:
            model.load_state_dict(self._best["model"])
            if self._rows[-1]["phase"] != "chosen":
                self._rows.append(
                    {"phase": "chosen", "epoch": self._best["epoch"], "test": self._best["test"]}
                )
        return model

    # -- polishing ---------------------------------------------------------------------------

    def _polished(self, model: nn.Module, stops: Callable[[], bool] | None) -> bool:
        """Polish to the end, or until time is up."""
        polish = find_polish(self._recipe.polish)
        inputs, targets = whole_split(self._data, self._preprocess)
        done = sum(row["phase"] == "sweep" for row in self._rows)
        for _ in range(done, self._sweeps):
            if self._rows[-1].get("flips") == 0:
                break  # no bit is left whose flip helps
            if self._group.agree_to(stops):
                return False
            row = {"phase": "sweep", **polish(model.cpu(), inputs, targets)}
            model.to(self._group.device)
            row["test"] = self._trainer.evaluate(self._data.test)
            self._rows.append(row)
            self._save()
            self._tell("sweep", row)
        return True

    # -- state and reports ---------------------------------------------------------------------

    def _save(self) -> None:
        if not self._group.writes:
            return
        state = {
            "trainer": self._trainer.state_dict(),
            "rows": self._rows,
            "best": self._best,
            "seconds": self._seconds(),
        }
        save_checkpoint(self._checkpoint, self._identity, state)
        if self._options.log is not None:
            write_log(self._options.log, self._log())

    def _resume(self, state: dict) -> None:
        self._trainer.load_state_dict(state["trainer"])
        self._rows, self._best = state["rows"], state["best"]
        self._spent = state["seconds"]

    def _log(self) -> dict:
        run = {
            "recipe": self._recipe.to_dict(),
            "float": self._options.twin,
            "parameters": self._parameters,
            "samples": self._identity["samples"],
            "device": self._group.device.type,
            "precision": self._identity["precision"],
            "processes": self._group.count,
        }
        return {**describe(run), "seconds": round(self._seconds(), 1), "steps": self._rows}

    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._started

    def _out_of_time(self) -> bool:
        return time.monotonic() - self._started > 60 * self._options.time_limit

    def _step_done(self) -> None:
        self._tell("epoch", None)

    def _tell(self, phase: str, row: dict | None) -> None:
        if not self._group.writes:
            return
        at, steps = self._trainer.position, self._trainer.steps
        # A sweep is counted as an epoch's worth.
        swept = sum(kept["phase"] == "sweep" for kept in self._rows)
        done = (at.epoch + swept) * steps + at.step
        self._report(Progress(done, (self._recipe.epochs + self._sweeps) * steps, phase, row))


def _precision(asked: str, device: torch.device) -> str:
    """The precision that ``auto`` stands for on a device."""
    if asked != "auto":
        if asked == "fp16" and device.type == "cpu":
            raise UsageError("--precision fp16: for GPUs; use bf16 or fp32 on a CPU")
        return asked
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
