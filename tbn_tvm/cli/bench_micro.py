"""``tbn-tvm bench micro``: what models take on emulated boards."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tbn_tvm.cli.output import add_json_flag, print_json, print_table

if TYPE_CHECKING:
    from tbn_tvm.bench.micro import Row


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = kinds.add_parser("micro", help="instructions and memory on emulated boards")
    parser.add_argument(
        "--board", nargs="+", metavar="BOARD", help="only these boards of the selection"
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from tbn_tvm.bench import micro
    from tbn_tvm.compiler import versions
    from tbn_tvm.errors import UsageError

    selection = micro.cases()
    if args.board:
        known = {case.board for case in selection}
        for board in args.board:
            if board not in known:
                raise UsageError(f"--board {board}: expected some of {', '.join(sorted(known))}")
        selection = [case for case in selection if case.board in args.board]

    def tell(row: Row) -> None:
        print(
            f"{row.model} {row.activations} on {row.board}: {row.instructions:,} instructions",
            file=sys.stderr,
        )

    rows = micro.measure(selection, tell)
    if args.json:
        print_json({"versions": versions(), "rows": [row.to_dict() for row in rows]})
        return 0
    print_table(
        "one inference on emulated boards; bytes",
        (
            "model",
            "activations",
            "core",
            "instructions",
            "flash",
            "weights",
            "RAM",
            "arena",
            "stack",
            "bare flash",
            "bare RAM",
        ),
        [
            (
                row.model,
                row.activations,
                row.core,
                row.instructions,
                row.flash,
                row.weights,
                row.ram,
                row.arena,
                row.stack,
                row.bare_flash,
                row.bare_ram,
            )
            for row in rows
        ],
    )
    return 0
