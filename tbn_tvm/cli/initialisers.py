"""``--report``: what became of each initialiser of an ONNX model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tbn_tvm.cli.output import print_table
from tbn_tvm.errors import UsageError

if TYPE_CHECKING:
    from tbn_tvm.frontend.onnx.report import InitialiserReport
    from tbn_tvm.importing import Imported


def add_report_flag(parser: argparse.ArgumentParser) -> None:
    """Shared by the commands that read models."""
    parser.add_argument(
        "--report",
        action="store_true",
        help="list each initialiser of an ONNX model, and why it is or is not tiled",
    )


def report_of(model: Imported) -> list[InitialiserReport]:
    """A line for each initialiser.

    Raises
    ------
    UsageError
        Where the model is no ONNX model.
    """
    from tbn_tvm.frontend.onnx.report import report_initialisers

    if model.onnx is None:
        raise UsageError("--report lists the initialisers of .onnx models, and this is none")
    return report_initialisers(model.onnx.graph, model.onnx.initialisers)


def print_report(rows: list[InitialiserReport]) -> None:
    """A table for people."""
    print_table(
        "initialisers",
        ("name", "shape", "dtype", "bytes", "tiled", "p", "tile, bits", "alignment", "why"),
        [
            (
                row.name,
                "x".join(map(str, row.shape)) or "scalar",
                row.dtype,
                row.nbytes,
                row.tiled,
                row.p or "-",
                row.q or "-",
                row.alignment or "",
                row.reason,
            )
            for row in rows
        ],
    )
