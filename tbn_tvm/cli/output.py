"""Printing shared by commands: tables for people, JSON for programs, data files in and out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from tbn_tvm.signature import Signature

LABELS = "labels"
"""Array of an input file that holds the right classes; not an input of the model."""


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """The flag every command that prints figures has."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_json(value: dict) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """A table; numbers are grouped by thousands and flushed right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], (int, float)) or row[index] == "-" for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        # As text: square brackets in a cell are not markup.
        table.add_row(*(Text(show(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        # Piped output is for reading too: do not squeeze it into a guess at a width.
        console = Console(width=200)
    console.print(table)


def print_memory(report: dict) -> None:
    """The tables of a board's memory report."""
    from tbn_tvm.micro.report import COLUMNS, layer_rows, map_rows, stack_rows, total_rows

    print_table("bytes by layer", COLUMNS, layer_rows(report))
    print_table("bytes in all", ("", ""), total_rows(report))
    if report["stack"]:
        print_table("the stack's deepest calls", ("function", "bytes"), stack_rows(report))
    print_table("the arena", ("offset", "bytes", "steps", "buffer"), map_rows(report))


def show(value) -> str:
    """A cell's text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def load_inputs(path: str, signature: Signature) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Read the inputs of a model from ``.npz`` (arrays by input name) or ``.npy`` (one input).

    Returns
    -------
    dict of str to numpy.ndarray
        Inputs by name.
    numpy.ndarray or None
        The array ``labels``, if the file has one.
    """
    import numpy as np

    wanted = ", ".join(str(spec) for spec in signature.inputs)
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected .npz or .npy with {wanted}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {signature.inputs[0].name: loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
        # Other files in a zip archive come as bytes.
        strangers = [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]
        if strangers:
            raise ValueError(f"{strangers[0]} is no array")
    except Exception as error:  # zipfile and zlib raise many kinds on damaged input
        raise InputError(
            f"{path}: not a NumPy file, or damaged ({error}); expected .npz or .npy with {wanted}"
        ) from None
    names = {spec.name for spec in signature.inputs}
    labels = arrays.pop(LABELS, None) if LABELS not in names else None
    return arrays, labels


def outputs_by_name(signature: Signature, result) -> dict[str, np.ndarray]:
    """What a run returned, by output name."""
    results = result if isinstance(result, tuple) else (result,)
    return {spec.name: y for spec, y in zip(signature.outputs, results, strict=True)}


def classification(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> dict:
    """Predicted classes of a model with one output of shape (B, classes), and their accuracy."""
    if len(outputs) != 1:
        return {}
    (scores,) = outputs.values()
    if scores.ndim != 2:
        return {}
    predictions = scores.argmax(axis=1)
    found: dict = {"predictions": predictions.tolist()}
    if labels is not None and labels.shape == predictions.shape:
        found["accuracy"] = float((predictions == labels).mean())
    return found


def shown_classes(predictions: list[int]) -> str:
    """The first of them, for a table."""
    return " ".join(map(str, predictions[:20])) + (" ..." if len(predictions) > 20 else "")


def write_whole(path: Path, text: str) -> Path:
    """Write a text file; an existing one is replaced only once the new one is whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def save_outputs(path: str, outputs: dict[str, np.ndarray]) -> None:
    """Write outputs as ``.npz``; an existing file is replaced only once the new one is whole."""
    import numpy as np

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **outputs)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
