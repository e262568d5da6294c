"""``tbn-tvm finetune``: from a trained float model to a tiled one."""

from __future__ import annotations

import argparse

from tbn_tvm.cli.output import add_json_flag
from tbn_tvm.cli.train import add_recipe_flags, add_run_flags, chosen_recipe, train
from tbn_tvm.errors import UsageError
from tbn_tvm.models.recipes import RECIPES


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "finetune",
        help="tile a trained float model, train it on and export it",
        description="Start from the tiled model nearest to a trained float one (--init: what "
        "tbn-tvm train RECIPE --float exported, or a state dict of torch.save; a tiled model keeps "
        "its bits and goes on, best with --teacher FLOAT), train it with a "
        "quarter of the recipe's epochs at a third of its rate while it also learns the float "
        "model's outputs, and export it. All of this can be set. An interrupted run goes on where "
        "it stopped when the same command is given again.",
    )
    parser.add_argument("recipe", choices=list(RECIPES), metavar="RECIPE", help="as for train")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with the data set")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL.pt2")
    add_recipe_flags(parser)
    add_run_flags(parser)
    add_json_flag(parser)
    parser.set_defaults(run=run, needs_tvm=False, float=False)


def run(args: argparse.Namespace) -> int:
    """Fine-tune, export and report."""
    if not args.init:
        raise UsageError("--init is missing; expected the float model to start from")
    return train(args, chosen_recipe(args, fine_tuning=True))
