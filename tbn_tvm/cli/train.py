"""``tbn-tvm train``: train a reference model and export it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tbn_tvm.cli.output import add_json_flag, print_json
from tbn_tvm.errors import UsageError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train",
        help="train a reference model and export it",
        description="Train a reference model. An interrupted run goes on where it stopped when "
        "the same command is given again.",
    )
    parser.add_argument("recipe", choices=["mnist-mlp"], metavar="RECIPE", help="mnist-mlp")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with the data set")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL.pt2")
    parser.add_argument("--epochs", type=_positive)
    parser.add_argument("--batch-size", type=_positive)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument(
        "--schedule",
        choices=["cosine", "paper"],
        help="Adam with cosine decay (default), or the authors' Adadelta with step decay",
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--p", type=_positive, help="compression factor (default 4)")
    parser.add_argument(
        "--polish-sweeps",
        type=_count,
        help="sweeps of coordinate descent over the bits after training (default 10; 0 for none)",
    )
    parser.add_argument("--log", metavar="FILE", help="write loss and accuracy by epoch as JSON")
    add_json_flag(parser)
    parser.set_defaults(run=run, needs_tvm=False)


def run(args: argparse.Namespace) -> int:
    """Train, export and report."""
    output = Path(args.output)
    if output.suffix != ".pt2":
        raise UsageError(f"-o {output}: expected a name that ends in .pt2")
    if not output.resolve().parent.is_dir():
        raise UsageError(f"-o {output}: its folder does not exist")

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from tbn_tvm.models import mnist_mlp
    from tbn_tvm.models.mnist import load_digits

    digits = load_digits(Path(args.data))
    recipe = mnist_mlp.recipe(
        schedule=args.schedule or "cosine",
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        p=args.p,
        polish_sweeps=args.polish_sweeps,
    )
    checkpoint = output.with_name(output.name + ".checkpoint")
    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=recipe.epochs + recipe.polish_sweeps)

        def report(progress: mnist_mlp.Progress) -> None:
            text = f"{progress.phase}  loss {progress.loss:.4f}  test {progress.test_accuracy:.2%}"
            bar.update(task, completed=progress.step, total=progress.steps, description=text)

        model, log = mnist_mlp.train(digits, recipe, checkpoint, report)
    mnist_mlp.export(model, output)
    if args.log:
        Path(args.log).write_text(
            json.dumps({"recipe": mnist_mlp.recipe_fields(recipe), "steps": log}, indent=1)
        )
    accuracy = mnist_mlp.evaluate(model, digits)
    checkpoint.unlink(missing_ok=True)
    if args.json:
        print_json(
            {
                "model": str(output),
                "test_accuracy": accuracy,
                "recipe": mnist_mlp.recipe_fields(recipe),
            }
        )
    else:
        print(f"{output}: test accuracy {accuracy:.2%} after {recipe.epochs} epochs")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected at least 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value}: expected 0 or more")
    return value
