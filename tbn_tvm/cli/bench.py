"""``tbn-tvm bench``: us and the alternative, side by side."""

from __future__ import annotations

import argparse
import sys

from tbn_tvm.cli.output import add_json_flag, print_json, print_table


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command and its own."""
    parser = commands.add_parser("bench", help="compare with what a user would run instead")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    cpu = kinds.add_parser("cpu", help="dense layers on this CPU against PyTorch")
    cpu.add_argument(
        "--shape", action="append", type=_shape, metavar="MxN", help="outputs x inputs"
    )
    cpu.add_argument("--p", nargs="+", type=int, metavar="P", help="compression factors")
    cpu.add_argument("--batch", nargs="+", type=int, metavar="B", help="numbers of samples")
    add_json_flag(cpu)
    cpu.set_defaults(run=run_cpu)


def run_cpu(args: argparse.Namespace) -> int:
    """Measure and report."""
    from tbn_tvm.bench import cpu

    def tell(row: cpu.Row) -> None:
        print(
            f"{row.m}x{row.n} p={row.p} batch={row.batch}: {row.over_float32:.1f}x float32, "
            f"{row.over_bfloat16:.1f}x bfloat16",
            file=sys.stderr,
        )

    rows = cpu.measure(
        args.shape or cpu.SHAPES, args.p or cpu.FACTORS, args.batch or cpu.BATCHES, tell
    )
    if args.json:
        print_json({"rows": [row.to_dict() for row in rows]})
        return 0
    print_table(
        "dense layers on this CPU, times faster than PyTorch",
        ("m x n", "p", "batch", "over float32", "over bfloat16", "of bandwidth", "of MAC rate"),
        [
            (
                f"{row.m}x{row.n}",
                row.p,
                row.batch,
                row.over_float32,
                row.over_bfloat16,
                row.bandwidth_share,
                row.arithmetic_share,
            )
            for row in rows
        ],
    )
    return 0


def _shape(text: str) -> tuple[int, int]:
    m, _, n = text.partition("x")
    if not (m.isdigit() and n.isdigit() and int(m) and int(n)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected MxN, 4096x4096 for example")
    return int(m), int(n)
