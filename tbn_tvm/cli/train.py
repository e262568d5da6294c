"""``tbn-tvm train``: train a model by a recipe and export it."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from tbn_tvm.cli.output import add_json_flag, print_json, print_table
from tbn_tvm.errors import UsageError
from tbn_tvm.models.recipes import RECIPES, find_recipe
from tbn_tvm.plotting import check_plot
from tbn_tvm.training.recipe import Recipe

STOPPED = 3
"""Exit status of a run that its time limit ended."""

_SHORTHANDS = ("epochs", "batch_size", "learning_rate", "schedule", "seed", "p", "polish_sweeps")
_SHORTHANDS += ("init", "teacher")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train",
        help="train a model by a recipe and export it",
        description="Train a model by a recipe and export it. An interrupted run goes on where it "
        "stopped when the same command is given again. Under torchrun (torchrun "
        "--nproc-per-node N -m -- tbn_tvm.cli.main train ...) batches are split among processes.",
    )
    parser.add_argument(
        "recipe", nargs="?", choices=list(RECIPES), metavar="RECIPE", help="see --list"
    )
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument("--data", metavar="DIR", help="folder with the data set")
    parser.add_argument("-o", "--output", metavar="MODEL.pt2")
    parser.add_argument(
        "--float", action="store_true", help="train the float twin: the same with ordinary layers"
    )
    add_recipe_flags(parser)
    add_run_flags(parser)
    add_json_flag(parser)
    parser.set_defaults(run=run, needs_tvm=False)


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that change a recipe's settings."""
    group = parser.add_argument_group("settings of the recipe")
    group.add_argument("--epochs", type=_positive)
    group.add_argument("--batch-size", type=_positive)
    group.add_argument("--learning-rate", type=float)
    group.add_argument("--schedule", choices=["cosine", "step", "constant"])
    group.add_argument("--seed", type=int)
    group.add_argument("--p", type=_positive, help="compression factor")
    group.add_argument(
        "--polish-sweeps",
        type=_count,
        help="sweeps of coordinate descent over the bits after training, at most",
    )
    group.add_argument(
        "--init", metavar="FLOAT", help="float model (.pt2) to start from, or a tiled one"
    )
    group.add_argument("--teacher", metavar="MODEL.pt2", help="model to distil from")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting (--list --json shows them all); lists are separated by commas",
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how a run is carried out."""
    group = parser.add_argument_group("how to run")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="of arithmetic in layers; auto is bf16 on a GPU that has it, fp32 on a CPU",
    )
    group.add_argument(
        "--time-limit",
        type=_minutes,
        metavar="MINUTES",
        help=f"stop after these minutes with exit status {STOPPED}; the same command goes on",
    )
    group.add_argument("--log", metavar="FILE", help="write settings, versions and figures as JSON")
    group.add_argument("--plot", metavar="FILE.png", help="draw loss, metrics and learning rate")


def chosen_recipe(args: argparse.Namespace, fine_tuning: bool = False) -> Recipe:
    """The recipe named on a command line, or its way of fine-tuning, with its settings."""
    settings = {name: getattr(args, name) for name in _SHORTHANDS}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected KEY=VALUE")
        settings[key.strip().replace("-", "_")] = value
    recipe = find_recipe(args.recipe)
    if fine_tuning:
        recipe = recipe.fine_tuning(args.init)
    return recipe.with_settings(settings)


def run(args: argparse.Namespace) -> int:
    """Train, export and report."""
    if args.list:
        return _list(args)
    for name, value in (("RECIPE", args.recipe), ("--data", args.data), ("-o", args.output)):
        if value is None:
            raise UsageError(f"{name} is missing; expected tbn-tvm train RECIPE --data DIR -o FILE")
    return train(args, chosen_recipe(args))


def train(args: argparse.Namespace, recipe: Recipe) -> int:
    """Carry out a run as a command line says, and report."""
    output = _writable(args.output, "-o", ".pt2")
    log = _writable(args.log, "--log") if args.log else None
    plot = _writable(args.plot, "--plot") if args.plot else None
    if plot is not None:
        check_plot(plot)

    from tbn_tvm.cli.train_progress import train_progress
    from tbn_tvm.training import engine

    options = engine.Options(
        twin=args.float,
        device=args.device,
        precision=args.precision,
        time_limit=args.time_limit,
        log=log,
    )
    with train_progress() as report:
        result = engine.run(recipe, Path(args.data), output, options, report)
    if not result.writes:
        return 0 if result.finished else STOPPED
    if plot is not None:
        from tbn_tvm.training.plot import plot_run

        plot_run(result.log, plot)
    if args.json:
        shown = {k: v for k, v in result.log.items() if k != "steps"}
        print_json({"model": str(output), "finished": result.finished, **shown})
    else:
        epochs = sum(step["phase"] == "epoch" for step in result.log["steps"])
        if result.finished:
            figures = ", ".join(f"{k} {v:.4f}" for k, v in result.log["result"].items())
            print(f"{output}: test {figures} after {epochs} epochs")
        else:
            print(f"stopped in epoch {epochs + 1} of {recipe.epochs}; the same command goes on")
    return 0 if result.finished else STOPPED


def _list(args: argparse.Namespace) -> int:
    if args.json:
        print_json({"recipes": [recipe.to_dict() for recipe in RECIPES.values()]})
        return 0
    columns = ("recipe", "model", "data", "epochs", "about")
    rows = [(r.name, r.model, r.data, r.epochs, r.about) for r in RECIPES.values()]
    print_table("recipes", columns, rows)
    return 0


def _writable(name: str, flag: str, suffix: str | None = None) -> Path:
    """A path to write later, as far as that can be told now."""
    path = Path(name)
    if suffix is not None and path.suffix != suffix:
        raise UsageError(f"{flag} {path}: expected a name that ends in {suffix}")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{flag} {path}: its folder does not exist")
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder, expected a file to write")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{flag} {path}: its folder cannot be written to")
    return path


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


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value
