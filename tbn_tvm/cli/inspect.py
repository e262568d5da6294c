"""``tbn-tvm inspect``: what a model is made of."""

from __future__ import annotations

import argparse

from tbn_tvm.cli.output import add_json_flag, print_json, print_table


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "inspect",
        help="what a model is made of, a row a layer",
        description="Print shape, tile, sizes and arithmetic of each layer of MODEL: a .pt2 file, "
        "package.module:factory, or an artifact.",
    )
    parser.add_argument("model", metavar="MODEL")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe and print."""
    from tbn_tvm.runtime import Artifact, is_artifact

    if is_artifact(args.model):
        from tbn_tvm.inspect import LayerInfo

        artifact = Artifact.load(args.model)
        name, layers = artifact.name, [LayerInfo.from_dict(row) for row in artifact.layers]
    else:
        from tbn_tvm.compiler import import_model

        imported = import_model(args.model)
        name, layers = imported.name, imported.layers

    from tbn_tvm.inspect import totals

    sums = totals(layers)
    if args.json:
        print_json({"model": name, "layers": [row.to_dict() for row in layers], "totals": sums})
        return 0
    rows = [
        (
            row.name,
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
    return 0
