"""``tbn-tvm export``: a model as an ONNX file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tbn_tvm.cli.output import add_json_flag, print_json, print_table
from tbn_tvm.errors import UsageError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "export",
        help="write a model as ONNX",
        description="Write MODEL, a .pt2 file, package.module:factory or models:NAME, as ONNX. "
        "Tiled layers become functions of our own domain that hold bits and alphas; the "
        "functions' bodies are standard ONNX, so that any run time that knows functions executes "
        "the file.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("-o", "--output", metavar="MODEL.onnx", help="default: the model's name")
    parser.add_argument(
        "--opset",
        type=int,
        default=18,
        metavar="N",
        help="version of ONNX's operators, from 17 (default 18)",
    )
    parser.add_argument(
        "--form",
        choices=["functions", "inline", "dense"],
        default="functions",
        help="for tools that do not know functions: their bodies in the graph, on the same bits "
        "(inline), or float weights (dense)",
    )
    parser.add_argument(
        "--external-data",
        action="store_true",
        help="weights in MODEL.onnx.data beside the model, as happens anyway past 2 GB",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with PyTorch in ONNX Runtime, if installed, on random inputs; a file that "
        "differs is not written (default: yes)",
    )
    add_json_flag(parser)
    parser.set_defaults(run=run, needs_tvm=False)


def run(args: argparse.Namespace) -> int:
    """Export and report."""
    from tbn_tvm.export import to_onnx
    from tbn_tvm.loading import default_name

    output = Path(args.output or f"{default_name(args.model)}.onnx")
    if output.suffix != ".onnx":
        raise UsageError(f"-o {output}: expected a name that ends in .onnx")
    exported = to_onnx(
        args.model,
        output,
        opset=args.opset,
        form=args.form,
        external_data=args.external_data,
        check=args.check,
        progress=None if args.json else _tell,
    )
    report = exported.to_dict()
    if args.json:
        print_json(report)
        return 0
    if exported.difference is None:
        difference = f"not compared: {exported.unchecked}"
    else:
        difference = f"{exported.difference:.2g} of the largest output"
    rows = [
        ("model", report["model"]),
        *([("weights", report["data"])] if report["data"] else []),
        ("opset", exported.opset),
        ("bytes written", exported.nbytes),
        ("tiled layers", len(exported.layers)),
        ("bytes of tiles and alphas", report["tiled_bytes"]),
        ("largest difference from PyTorch", difference),
    ]
    print_table(output.stem, ("", ""), rows)
    return 0


def _tell(step: str) -> None:
    print(f"{step} ...", file=sys.stderr)
