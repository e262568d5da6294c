"""``tbn-tvm compile``: a model to an artifact or a bare-metal project."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tbn_tvm.cli.output import add_json_flag, print_json, print_table
from tbn_tvm.errors import UsageError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "compile",
        help="compile a model for a CPU or a board",
        description="Compile MODEL, a .pt2 file or package.module:factory. A CPU target gives one "
        "artifact file, a board gives a folder of C.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--target",
        default="llvm",
        help="llvm (default), host (this CPU's features), a TVM target as JSON, or a board "
        "(tbn-tvm micro boards)",
    )
    parser.add_argument("-o", "--output", metavar="PATH", help="artifact file, or project folder")
    parser.add_argument("--name", help="the model's name in generated C")
    parser.add_argument("--dump-ir", metavar="DIR", help="write the IR after each phase")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile, save and report."""
    from tbn_tvm import compiler
    from tbn_tvm.runtime import Artifact

    target = compiler.resolve_target(args.target)
    name = compiler.c_identifier(args.name) if args.name else compiler.default_name(args.model)
    if args.dump_ir and Path(args.dump_ir).is_file():
        raise UsageError(f"--dump-ir {args.dump_ir}: is a file, expected a folder")
    _check_output(args.output, isinstance(target, dict))
    tell = _progress() if not args.json else None
    compiled = compiler.compile(
        args.model,
        args.target if not isinstance(target, dict) else target,
        name=name,
        dump_ir=args.dump_ir,
        progress=tell,
    )
    if isinstance(compiled, Artifact):
        path = compiled.save(args.output or f"{name}.tbn")
        report = {
            "artifact": str(path),
            "target": compiled.target,
            "artifact_bytes": path.stat().st_size,
            "library_bytes": len(compiled.library),
            "constant_bytes": sum(array.nbytes for array in compiled.constants),
            **compiled.signature.to_dict(),
            "layers": compiled.layers,
        }
        lines = [
            ("artifact", str(path)),
            ("constants, bytes", report["constant_bytes"]),
            ("library, bytes", report["library_bytes"]),
        ]
    else:
        path = compiled.save(args.output or f"{name}-{compiled.board.name}")
        report = {
            "project": str(path),
            "board": compiled.board.name,
            "memory": compiled.memory,
            **compiled.signature.to_dict(),
            "layers": compiled.layers,
        }
        lines = [
            ("project", str(path)),
            ("weights in flash, bytes", compiled.memory["weights"]),
            ("arena in RAM, bytes", compiled.memory["arena"]),
            ("arena's lower bound, bytes", compiled.memory["arena_lower_bound"]),
        ]
    if args.json:
        print_json(report)
    else:
        print_table(f"{name} for {args.target}", ("", ""), lines)
    return 0


def _check_output(output: str | None, is_file: bool) -> None:
    """Told now rather than when a compilation of minutes is done."""
    if output is None:
        return
    from tbn_tvm.micro.project import check_destination

    if not is_file:
        check_destination(Path(output))
    elif Path(output).is_dir():
        raise UsageError(f"-o {output}: is a folder; an artifact is a file")


def _progress():
    def tell(step: str) -> None:
        print(f"{step} ...", file=sys.stderr)

    return tell
