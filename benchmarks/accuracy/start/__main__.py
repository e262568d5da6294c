"""Where training of a tiled model starts from, and what that is worth.

``python benchmarks/accuracy/start OUT.json --data DIR`` trains two small float networks on MNIST,
tiles each from four starts, and trains all of them in the same way. Loss and accuracy on the test
images are told before the first epoch and after some: nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tbn_tvm.nn import tile_model
from tbn_tvm.training.data.mnist import Digits, load_digits

CALIBRATION = 500
"""Training images that the last start sees."""

STARTS = {
    "random": {"start": "random"},
    "copy": {"start": "copy"},
    "nearest": {},
    "permuted and fitted": {"permute": True},
}
"""Arguments of ``tile_model``. ``random`` keeps the biases and batch norm of the float model."""


@dataclass(frozen=True)
class Setting:
    """A network and how it is tiled and trained.

    Attributes
    ----------
    network : {"mlp", "cnn"}
        784-128-10, or three convolutions of stride 2 with batch norm and a linear layer.
    p, min_size : int
        Of ``tile_model``.
    images : int
        Training images that are used.
    """

    network: str
    p: int
    min_size: int
    images: int


SETTINGS = (Setting("mlp", 4, 2_000, 20_000),)
BATCH, LEARNING_RATE = 100, 1e-3
FLOAT_EPOCHS = 3


def network(kind: str) -> nn.Module:
    """An untrained float network, ``(B, 784) -> (B, 10)``."""
    if kind == "mlp":
        return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))


@torch.no_grad()
def evaluate(model: nn.Module, digits: Digits) -> dict:
    """Mean loss and accuracy on the test images."""
    model.eval()
    logits = torch.cat([model(batch) for batch in digits.test_images.split(2000)])
    return {
        "loss": float(nn.functional.cross_entropy(logits, digits.test_labels)),
        "accuracy": float((logits.argmax(1) == digits.test_labels).double().mean()),
    }


def train(model: nn.Module, digits: Digits, images: int, epochs: int, seed: int) -> list[dict]:
    """Adam with a cosine decay; what :func:`evaluate` gives before and after each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    steps = epochs * (images // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    curve = [evaluate(model, digits)]
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(images, generator=generator).split(BATCH):
            logits = model(digits.train_images[batch])
            loss = nn.functional.cross_entropy(logits, digits.train_labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        curve.append(evaluate(model, digits))
    return curve


def measure(digits: Digits, setting: Setting, seed: int, epochs: int) -> dict:
    """One float network, and what becomes of it from each start."""
    torch.manual_seed(seed)
    float_model = network(setting.network)
    float_curve = train(float_model, digits, setting.images, FLOAT_EPOCHS, seed)
    samples = digits.train_images[:CALIBRATION]
    curves, errors = {}, {}
    for name, options in STARTS.items():
        model = copy.deepcopy(float_model).eval()
        fitted = {"calibration": samples} if "permute" in options else {}
        torch.manual_seed(seed)
        report = tile_model(model, setting.p, setting.min_size, **options, **fitted)
        errors[name] = {row.name: round(row.error, 4) for row in report.layers}
        curves[name] = train(model, digits, setting.images, epochs, seed)
    return {
        "seed": seed,
        "float": float_curve[-1],
        "weight_error": errors,
        "curves": curves,
    }


def table(results: list[dict], epochs: list[int]) -> str:
    """Markdown: mean accuracy (loss) over the seeds by setting, start and epoch."""
    head = " | ".join(f"epoch {epoch}" for epoch in epochs)
    lines = [f"| network, p | start | {head} |", "| --- " * (2 + len(epochs)) + "|"]
    for result in results:
        title = f"{result['setting']['network']}, {result['setting']['p']}"
        for start in STARTS:
            cells = []
            for epoch in epochs:
                points = [run["curves"][start][epoch] for run in result["runs"]]
                accuracy = statistics.fmean(point["accuracy"] for point in points)
                loss = statistics.fmean(point["loss"] for point in points)
                cells.append(f"{accuracy:.2%} ({loss:.3f})")
            lines.append(f"| {title} | {start} | {' | '.join(cells)} |")
        reached = statistics.fmean(run["float"]["accuracy"] for run in result["runs"])
        lines.append(f"| {title} | float network | {reached:.2%} |" + " |" * (len(epochs) - 1))
    return "\n".join(lines)


def write(path: Path, content: dict) -> None:
    """Replace a JSON file once the new one is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT.json")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits(args.data)
    results = []
    for setting in SETTINGS:
        runs = []
        for seed in args.seeds:
            runs.append(measure(digits, setting, seed, args.epochs))
            print(f"{setting}, seed {seed}: done", flush=True)
        results.append({"setting": vars(setting), "runs": runs})
        write(args.output, {"torch": torch.__version__, "epochs": args.epochs, "results": results})
    told = sorted({epoch for epoch in (0, 1, 2, args.epochs) if epoch <= args.epochs})
    print(table(results, told))


if __name__ == "__main__":
    main()
