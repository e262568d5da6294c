"""``tbn-tvm inspect``: what a model is made of."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tbn_tvm.cli.initialisers import add_report_flag, print_report, report_of
from tbn_tvm.cli.output import add_json_flag, print_json, print_table
from tbn_tvm.errors import UsageError

if TYPE_CHECKING:
    from tbn_tvm.inspect import LayerInfo


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "inspect",
        help="what a model is made of, a row a layer",
        description="Print shape, tile, sizes and arithmetic of each layer of MODEL: a .pt2 or "
        ".onnx file, package.module:factory, models:NAME or an artifact.",
    )
    parser.add_argument("model", metavar="MODEL")
    add_report_flag(parser)
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out layers of this name, * standing for anything; may be repeated (published "
        "sizes of binary networks often leave out the first layer, shortcuts and the classifier)",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw size and arithmetic a layer, float against binary against tiled (.png, .pdf or "
        ".svg; needs matplotlib)",
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe and print."""
    from tbn_tvm.inspect import LayerInfo, totals, without
    from tbn_tvm.plotting import check_plot
    from tbn_tvm.runtime import Artifact, is_artifact

    report = None
    if args.plot:
        check_plot(args.plot)
    if is_artifact(args.model):
        if args.report:
            raise UsageError(
                "--report: an artifact no longer has initialisers; give the .onnx file"
            )
        artifact = Artifact.load(args.model)
        name, layers = artifact.name, [LayerInfo.from_dict(row) for row in artifact.layers]
    else:
        from tbn_tvm.importing import import_model

        imported = import_model(args.model)
        name, layers = imported.name, imported.layers
        report = report_of(imported) if args.report else None
    layers = without(layers, args.without)
    sums = totals(layers)
    plotted = None
    if args.plot:
        from tbn_tvm.layer_plot import plot_layers

        plotted = str(plot_layers(layers, args.plot, _title(name, sums)))
    if args.json:
        found = {"model": name, "layers": [row.to_dict() for row in layers], "totals": sums}
        if report is not None:
            found["initialisers"] = [row.to_dict() for row in report]
        if plotted is not None:
            found["plot"] = plotted
        print_json(found)
        return 0
    rows = [
        (
            _shown_name(row),
            "x".join(map(str, row.shape)),
            row.p or "-",
            row.q or "-",
            row.alignment or "float",
            row.unique_rows,
            row.bits_per_weight,
            row.nbytes,
            row.float_bytes,
            row.binary_bytes,
            row.macs_dense,
            row.macs,
        )
        for row in layers
    ]
    rows.append(
        (
            "total",
            f"{sums['weights']:,}",
            "-",
            "-",
            "",
            "-",
            sums["bits_per_weight"],
            sums["nbytes"],
            sums["float_bytes"],
            sums["binary_bytes"],
            sums["macs_dense"],
            sums["macs"],
        )
    )
    print_table(
        name,
        (
            "layer",
            "shape",
            "p",
            "tile, bits",
            "alignment",
            "unique rows",
            "bits/weight",
            "bytes",
            "float32",
            "1 bit",
            "MACs dense",
            "MACs",
        ),
        rows,
    )
    print_table("in all", ("", ""), _total_rows(sums, plotted))
    if report is not None:
        print_report(report)
    return 0


def _title(name: str, sums: dict) -> str:
    return (
        f"{name}: {sums['weights']:,} weights, {sums['mbit']:.3f} Mbit, "
        f"{sums['bits_per_weight']:.3f} bits a weight"
    )


def _shown_name(row: LayerInfo) -> str:
    times = len(row.products)
    return f"{row.name} ({times} times)" if times > 1 else row.name


def _total_rows(sums: dict, plotted: str | None) -> list[tuple]:
    def against(least: int, most: int) -> str:
        # Of a float model the binary one has fewer: 0.03 rather than 0.0.
        times = most / max(least, 1)
        return f"{most:,} ({times:.{1 if times >= 1 else 3}f} times as much)"

    return [
        ("weights", f"{sums['weights']:,} ({sums['tiled_weights']:,} in tiles used repeatedly)"),
        ("Mbit", sums["mbit"]),
        ("bits a weight", sums["bits_per_weight"]),
        ("bytes", sums["nbytes"]),
        ("bytes as float32", against(sums["nbytes"], sums["float_bytes"])),
        ("bytes at 1 bit a weight", against(sums["nbytes"], sums["binary_bytes"])),
        ("multiply-adds", sums["macs"]),
        ("multiply-adds before reuse", against(sums["macs"], sums["macs_dense"])),
        *([("plot", plotted)] if plotted else []),
    ]
