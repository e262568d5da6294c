"""What readers of point clouds share: text files of numbers, a fixed number of points, scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tbn_tvm.errors import TbnError


def read_lines(path: Path, wanted: str) -> list[str]:
    """The lines of a list file that are not empty.

    Raises
    ------
    TbnError
        Where it cannot be read or is empty.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TbnError(f"{path}: cannot be read, expected {wanted}: {error}") from None
    lines = [line for line in lines if line]
    if not lines:
        raise TbnError(f"{path}: is empty, expected {wanted}")
    return lines


def read_names(path: Path) -> list[str]:
    """A JSON list of strings."""
    try:
        names = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TbnError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TbnError(f"{path}: expected a JSON list of names")
    return names


def read_points(
    path: Path, columns: int, delimiter: str | None = None, rows: int | None = None
) -> np.ndarray:
    """Numbers as text, a point a line: float32 ``(points, columns)``.

    Parameters
    ----------
    path : Path
        The file.
    columns : int
        Numbers in a line.
    delimiter : str, optional
        Between them; white space by default.
    rows : int, optional
        At most so many points, from the first on.

    Raises
    ------
    TbnError
        Where the file is missing, empty or holds something else.
    """
    try:
        with path.open("rb") as file:
            # A published file has a control character where a space belongs; no number has one.
            lines = (line.translate(_CONTROL_TO_SPACE).decode("ascii") for line in file)
            points = np.loadtxt(lines, np.float32, delimiter=delimiter, ndmin=2, max_rows=rows)
    except (OSError, ValueError) as error:
        raise TbnError(f"{path}: cannot be read as {columns} numbers a line: {error}") from None
    if not points.size:
        raise TbnError(f"{path}: holds no points")
    if points.shape[1] != columns:
        raise TbnError(f"{path}: has {points.shape[1]} numbers a line, expected {columns}")
    if not np.isfinite(points).all():
        raise TbnError(f"{path}: holds numbers that are not finite")
    return points


_CONTROL_TO_SPACE = bytes(32 if code < 32 and code != 10 else code for code in range(256))


def pick(count: int, wanted: int, random: np.random.Generator) -> np.ndarray:
    """Indices of so many of ``count`` points: without repetition where there are enough."""
    if count >= wanted:
        return random.permutation(count)[:wanted]
    return np.concatenate([np.arange(count), random.integers(0, count, wanted - count)])


def in_unit_sphere(points: np.ndarray) -> np.ndarray:
    """Coordinates ``(..., points, 3)`` around the origin, the farthest at distance 1."""
    centred = points - points.mean(-2, keepdims=True)
    radius = np.linalg.norm(centred, axis=-1).max(-1)[..., None, None]
    return (centred / np.where(radius > 0, radius, 1)).astype(np.float32)
