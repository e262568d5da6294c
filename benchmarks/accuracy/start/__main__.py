"""Where training of a tiled model starts from, and what that is worth.

``python benchmarks/accuracy/start OUT.json --data DIR`` trains float networks on MNIST, tiles each
from four starts, and trains all of them in the same way. Every start has its best of a few learning
rates, by the validation accuracy that it ends with from the first float network at the first p.
Accuracy on the test images is told and nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tbn_tvm.errors import TbnError
from tbn_tvm.nn import tile_model
from tbn_tvm.training.data.mnist import Digits, load_digits

STARTS = {
    "random": {"start": "random"},
    "copy": {"start": "copy"},
    "nearest": {},
    "permuted and fitted": {"permute": True},
}
"""Arguments of ``tile_model``. ``random`` keeps the biases and batch norm of the float model."""


@dataclass(frozen=True)
class Setting:
    """What is the same for every start.

    Attributes
    ----------
    factors : tuple of int
        Compression factors ``p``.
    min_size : int
        Layers with fewer weights are binary.
    rates : tuple of float
        Learning rates of Adam that each start may choose from.
    passes : tuple of int
        Passes of fine-tuning after which accuracy is told; the last ends it.
    images : int
        A pass, drawn anew for each from all that train.
    batch_size : int
        Of fine-tuning.
    float_epochs, float_batch_size, float_rate : int, int, float
        Training of the float network, on all images that train.
    validation : int
        Images at the end of the training split that are held out.
    calibration : int
        Training images that the last start is fitted with.
    """

    factors: tuple[int, ...] = (4, 8)
    min_size: int = 2_000
    rates: tuple[float, ...] = (1e-3, 4e-3, 1e-2)
    passes: tuple[int, ...] = (0, 1, 2, 5, 10)
    images: int = 10_000
    batch_size: int = 250
    float_epochs: int = 15
    float_batch_size: int = 1_000
    float_rate: float = 3e-3
    validation: int = 5_000
    calibration: int = 500


def network() -> nn.Module:
    """An untrained float network, ``(B, 784) -> (B, 10)``."""
    return nn.Sequential(
        nn.Linear(784, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)
    )


class Experiment:
    """Float networks and what becomes of them.

    Parameters
    ----------
    digits : Digits
        MNIST.
    setting : Setting
        How all are trained.
    """

    def __init__(self, digits: Digits, setting: Setting) -> None:
        self.setting = setting
        kept = len(digits.train_labels) - setting.validation
        self.train_images, self.train_labels = (
            digits.train_images[:kept],
            digits.train_labels[:kept],
        )
        self.held_out = {
            "validation": (digits.train_images[kept:], digits.train_labels[kept:]),
            "test": (digits.test_images, digits.test_labels),
        }

    def float_network(self, seed: int) -> nn.Module:
        """A trained float network."""
        torch.manual_seed(seed)
        model, setting = network(), self.setting
        optimiser = torch.optim.Adam(model.parameters(), setting.float_rate, fused=True)
        batches = self._batches(setting.float_epochs, None, setting.float_batch_size, seed)
        self._train(model, optimiser, batches, ())
        return model

    def run(self, reference: nn.Module, seed: int, p: int, start: str, rate: float) -> dict:
        """Tile a float network and train on; accuracies before the first pass and after each."""
        model, setting, options = copy.deepcopy(reference).eval(), self.setting, dict(STARTS[start])
        if "permute" in options:
            options["calibration"] = self.train_images[: setting.calibration]
        torch.manual_seed(seed)
        report = tile_model(model, p, setting.min_size, **options)
        optimiser = torch.optim.Adam(model.parameters(), rate, fused=True)
        batches = self._batches(setting.passes[-1], setting.images, setting.batch_size, seed)
        reached = self._train(model, optimiser, batches, setting.passes)
        return {
            "seed": seed,
            "p": p,
            "start": start,
            "rate": rate,
            "weight_error": {row.name: round(row.error, 4) for row in report.layers},
            **{split: [round(point[split], 4) for point in reached] for split in self.held_out},
        }

    @torch.no_grad()
    def accuracies(self, model: nn.Module) -> dict[str, float]:
        """Share of images whose class the model finds, by split that is held out."""
        model.eval()
        return {
            split: float((model(images).argmax(1) == labels).double().mean())
            for split, (images, labels) in self.held_out.items()
        }

    def _batches(self, passes: int, images: int | None, size: int, seed: int) -> list[list[Tensor]]:
        """Indices by pass and step."""
        generator = torch.Generator().manual_seed(seed)
        count = len(self.train_labels)
        return [
            list(torch.randperm(count, generator=generator)[:images].split(size))
            for _ in range(passes)
        ]

    def _train(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        batches: list[list[Tensor]],
        told: tuple[int, ...],
    ) -> list[dict[str, float]]:
        """Train with a cosine decay of the rate; accuracies after the passes asked for."""
        steps = sum(map(len, batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        reached = [self.accuracies(model)] if 0 in told else []
        for number, in_pass in enumerate(batches, 1):
            model.train()
            for batch in in_pass:
                logits = model(self.train_images[batch])
                optimiser.zero_grad()
                F.cross_entropy(logits, self.train_labels[batch]).backward()
                optimiser.step()
                schedule.step()
            if number in told:
                reached.append(self.accuracies(model))
        return reached


def measure(experiment: Experiment, seeds: list[int]) -> Iterator[dict]:
    """The content of the result file, after each seed."""
    setting = experiment.setting
    rates = dict.fromkeys(STARTS, setting.rates)
    content = {
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "setting": asdict(setting),
        "float": {},
        "runs": [],
    }
    for seed in seeds:
        reference = experiment.float_network(seed)
        content["float"][str(seed)] = experiment.accuracies(reference)
        print(f"seed {seed}, float: {content['float'][str(seed)]}", flush=True)
        for p, start in itertools.product(setting.factors, STARTS):
            runs = [experiment.run(reference, seed, p, start, rate) for rate in rates[start]]
            best = max(runs, key=lambda run: run["validation"][-1])
            # What comes later trains with what the first has chosen.
            rates[start] = (best["rate"],)
            content["runs"] += [{**run, "chosen": run is best} for run in runs]
            print(f"seed {seed}, p={p}, {start}, rate {best['rate']}: {best['test']}", flush=True)
        yield content


def table(content: dict) -> str:
    """Markdown: mean test accuracy over the seeds by factor, start and passes."""
    told = content["setting"]["passes"]
    head = " | ".join(f"after {count}" for count in told)
    lines = [f"| p | start | rate | {head} |", "| --- " * (3 + len(told)) + "|"]
    groups: dict[tuple, list[list[float]]] = {}
    for run in filter(lambda run: run["chosen"], content["runs"]):
        groups.setdefault((run["p"], run["start"], run["rate"]), []).append(run["test"])
    for (p, start, rate), curves in groups.items():
        cells = " | ".join(f"{statistics.fmean(at):.2%}" for at in zip(*curves, strict=True))
        lines.append(f"| {p} | {start} | {rate:g} | {cells} |")
    reached = statistics.fmean(found["test"] for found in content["float"].values())
    return "\n".join([*lines, f"The float networks: {reached:.2%}"])


def write(path: Path, content: dict) -> None:
    """Replace a JSON file once the new one is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT.json")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        digits = load_digits(args.data)
    except TbnError as error:
        parser.error(str(error))
    for content in measure(Experiment(digits, Setting()), args.seeds):
        write(args.output, content)
    print(table(content))


if __name__ == "__main__":
    main()
