"""``tbn-tvm bench``: us and the alternative, side by side."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from tbn_tvm.cli import bench_cuda, bench_micro
from tbn_tvm.cli.output import add_json_flag, print_json, print_table

if TYPE_CHECKING:
    from tbn_tvm.bench.cpu import Conv, Row

_CONV = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)(?:g(\d+))?")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command and its own."""
    parser = commands.add_parser("bench", help="compare with what a user would run instead")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    cpu = kinds.add_parser("cpu", help="layers on this CPU against PyTorch")
    cpu.add_argument(
        "--shape", action="append", type=_shape, metavar="MxN", help="dense: outputs x inputs"
    )
    cpu.add_argument(
        "--conv",
        action="append",
        type=_conv,
        metavar="OxCxKxH[gG]",
        help="convolution: output x input channels, sides of window and image, groups",
    )
    cpu.add_argument("--p", nargs="+", type=int, metavar="P", help="compression factors")
    cpu.add_argument("--batch", nargs="+", type=int, metavar="B", help="numbers of samples")
    cpu.add_argument(
        "--dtype", nargs="+", choices=("float32", "float16"), help="of our activations"
    )
    cpu.add_argument(
        "--plot", metavar="FILE", help="draw speed-up against batch (needs matplotlib)"
    )
    add_json_flag(cpu)
    cpu.set_defaults(run=run_cpu)
    bench_cuda.add_parser(kinds)
    bench_micro.add_parser(kinds)


def run_cpu(args: argparse.Namespace) -> int:
    """Measure and report."""
    from tbn_tvm.bench import cpu, plot
    from tbn_tvm.compiler import versions

    if args.plot:
        plot.require_matplotlib()

    def tell(row: Row) -> None:
        print(
            f"{row.layer} {row.dtype} p={row.p} batch={row.batch}: {row.over_float32:.1f}x "
            f"float32, {row.over_bfloat16:.1f}x bfloat16",
            file=sys.stderr,
        )

    # Layers that are asked for replace all of the usual ones.
    chosen = bool(args.shape or args.conv)
    rows = cpu.measure(
        args.shape or (() if chosen else cpu.SHAPES),
        args.p or cpu.FACTORS,
        args.batch,
        args.conv or (() if chosen else cpu.CONVS),
        args.dtype or cpu.DTYPES,
        tell,
    )
    machine = cpu.machine()
    where = f"{machine['cpu']} ({machine['llvm_cpu']}), {machine['threads']} threads"
    if args.plot:
        plot.draw(rows, args.plot, where)
    if args.json:
        print_json(
            {
                "machine": machine,
                "versions": versions(),
                "rows": [row.to_dict() for row in rows],
            }
        )
        return 0
    print_table(
        f"{where}: times faster than PyTorch",
        (
            "layer",
            "dtype",
            "p",
            "batch",
            "over float32",
            "over bfloat16",
            "of bandwidth",
            "of MAC rate",
        ),
        [
            (
                row.layer,
                row.dtype,
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


def _conv(text: str) -> Conv:
    from tbn_tvm.bench.cpu import Conv

    found = _CONV.fullmatch(text)
    numbers = [int(group or 1) for group in found.groups()] if found else [0]
    if not all(numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected OxCxKxH, 64x64x3x56 for example, or OxCxKxHgG with groups"
        )
    conv = Conv(*numbers)
    if conv.outputs % conv.groups or conv.inputs % conv.groups or conv.kernel % 2 == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: groups must divide both channels, and the window's side be odd"
        )
    return conv
