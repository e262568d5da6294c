"""``tbn-tvm convert``: a checkpoint of the reference implementation to a program."""

from __future__ import annotations

import argparse

from tbn_tvm.cli.output import add_json_flag, print_json, print_table


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "convert",
        help="a checkpoint of the reference implementation to a .pt2",
        description="Load CHECKPOINT, a state dict of torch.save whose tiled layers hold scores "
        "and weight, into a model, and export it. Files with code in them are not read.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="a registered architecture, or package.module:factory that returns (module, "
        "example_inputs[, dynamic_shapes])",
    )
    parser.add_argument("--p", type=int, default=4, help="compression factor (default 4)")
    parser.add_argument(
        "--min-size",
        type=int,
        metavar="N",
        help="layers with fewer weights are binary (default: the architecture's own, or 64000)",
    )
    parser.add_argument(
        "--alpha",
        choices=["tile", "layer"],
        default="tile",
        help="one scalar a use of the tile (default), or one a layer",
    )
    parser.add_argument(
        "--by-order",
        action="store_true",
        help="pair layers by their order, not by name: for the same architecture under other names",
    )
    parser.add_argument("-o", "--output", required=True, metavar="MODEL.pt2")
    add_json_flag(parser)
    parser.set_defaults(run=run, needs_tvm=False)


def run(args: argparse.Namespace) -> int:
    """Convert, save and report."""
    from tbn_tvm.checkpoints import check_program_path, convert_checkpoint, save_program

    output = check_program_path(args.output)
    program, kinds = convert_checkpoint(
        args.checkpoint,
        args.model,
        p=args.p,
        min_size=args.min_size,
        alpha=args.alpha,
        match="order" if args.by_order else "name",
    )
    save_program(program, output)
    if args.json:
        print_json({"model": str(output), "layers": kinds})
    else:
        print_table(f"{output}", ("layer", "stored as"), list(kinds.items()))
    return 0
