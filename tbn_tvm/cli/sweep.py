"""``tbn-tvm sweep``: what a model would take at several compression factors."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tbn_tvm.cli.output import add_json_flag, print_json, print_table

if TYPE_CHECKING:
    from tbn_tvm.sweep import Sweep

_MEASURES = {
    "ratio": "time, float = 1",
    "microseconds": "microseconds",
    "instructions": "instructions",
    "flash": "flash",
    "ram": "RAM",
    "arena": "arena",
    "weights": "weights there",
    "activations": "activations",
    "peak": "planned memory",
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "sweep",
        help="size, arithmetic and speed at several compression factors, before training",
        description="Tile MODEL, a .pt2 or .onnx file or package.module:factory, at each "
        "compression factor, untrained, and print what it takes: sizes and multiply-adds; time on "
        "this machine for llvm and host, instructions and memory for a board, planned memory for "
        "cuda. A factor that cannot be has a row with the reason.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--p", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="P", help="default 1 2 4 8 16"
    )
    parser.add_argument(
        "--target", default="llvm", help="llvm (default), host, cuda, cuda=sm_90 or a board"
    )
    parser.add_argument(
        "--min-size",
        type=int,
        metavar="N",
        help="layers with fewer weights are binary (default 64000; of models:NAME its own)",
    )
    parser.add_argument("--alpha", choices=["tile", "layer"], default="tile")
    parser.add_argument(
        "--sizes-only", action="store_true", help="compile and run nothing: sizes and arithmetic"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw it (.png, .pdf or .svg; needs matplotlib)"
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sweep and report."""
    from tbn_tvm.compiler import resolve_target
    from tbn_tvm.importing import import_model
    from tbn_tvm.loading import usual_min_size
    from tbn_tvm.plotting import check_plot

    if args.plot:
        check_plot(args.plot)
    resolve_target(args.target)  # told now rather than when the model is imported

    from tbn_tvm.sweep import sweep

    def tell(step: str) -> None:
        if not args.json:
            print(f"{step} ...", file=sys.stderr)

    tell("importing")
    result = sweep(
        import_model(args.model),
        args.p,
        args.target,
        min_size=usual_min_size(args.model) if args.min_size is None else args.min_size,
        alpha=args.alpha,
        measure=not args.sizes_only,
        progress=tell,
    )
    plotted = None
    if args.plot:
        from tbn_tvm.sweep.plot import plot_sweep

        plotted = str(plot_sweep(result, args.plot))
    if args.json:
        print_json({**result.to_dict(), "plot": plotted})
        return 0
    _print(result)
    if plotted:
        print(plotted)
    return 0


def _print(result: Sweep) -> None:
    measures = [key for key in _MEASURES if any(key in row.measured for row in result.rows)]
    columns = ("p", "tiled", "binary", "float", "Mbit", "bits/weight", "bytes", "MACs")
    rows = []
    for row in result.rows:
        kinds = (row.tiled, row.binary, row.float) if row.sums else ("-", "-", "-")
        sums = (row.sums.get(key, "-") for key in ("mbit", "bits_per_weight", "nbytes", "macs"))
        figures = (row.measured.get(key, "-") for key in measures)
        rows.append((row.label, *kinds, *sums, *figures, row.reason))
    print_table(
        f"{result.model} on {result.target}, lambda = {result.min_size:,}",
        (*columns, *(_MEASURES[key] for key in measures), "why not"),
        rows,
    )
