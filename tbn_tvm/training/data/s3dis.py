"""Stanford 3D indoor spaces (S3DIS, Armeni et al., CVPR 2016), rooms cut into blocks of points.

``Stanford3dDataset_v1.2_Aligned_Version`` has folders ``Area_<k>/<room>/Annotations`` with a text
file an object, ``<class>_<number>.txt``: x, y, z in metres and red, green, blue from 0 to 255, a
point a line. As Qi et al. (arXiv:1612.00593) do, a room is cut into columns of one metre by one
metre, and a point has nine features: coordinates from the block's middle (height from the floor),
colour in [0, 1], and its place in the room in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.training.data import DataSet, TensorSplit, require_folder
from tbn_tvm.training.data.clouds import pick, read_points

FOLDER = "Stanford3dDataset_v1.2_Aligned_Version"
CLASSES = (
    "ceiling",
    "floor",
    "wall",
    "beam",
    "column",
    "window",
    "door",
    "table",
    "chair",
    "sofa",
    "bookcase",
    "board",
    "clutter",
)
_SIDE = 1.0
_LEAST = 100
"""Blocks with fewer points, slivers at the walls, are left out, as the authors do."""


def load(
    folder: Path, points: int = 4096, test_area: int = 5, stride: float = 1.0, seed: int = 0
) -> DataSet:
    """S3DIS from its folder, or the folder that holds it. All of it takes some minutes to read.

    Parameters
    ----------
    folder : Path
        Where it is.
    points : int
        Of each block, chosen at random once; a block with fewer gives some of them twice.
    test_area : int
        The area whose rooms are for test; all others are for training.
    stride : float
        Metres from one training block to the next; below 1 they overlap. Test blocks never do.
    seed : int
        Of the choice of points.

    Returns
    -------
    DataSet
        Inputs float32 ``(N, 9, points)``, targets int64 ``(N, points)``.

    Raises
    ------
    TbnError
        Where files are missing or malformed.
    """
    if points < 1 or not 0 < stride <= _SIDE:
        raise UsageError(
            f"points {points}, stride {stride}: expected at least 1, and above 0, at most {_SIDE}"
        )
    folder = Path(folder)
    require_folder(folder, FOLDER)
    place = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    areas = sorted(path for path in place.glob("Area_*") if path.is_dir())
    test = [area for area in areas if area.name == f"Area_{test_area}"]
    train = [area for area in areas if area not in test]
    if not test or not train:
        names = ", ".join(area.name for area in areas) or "no folder Area_<number>"
        raise TbnError(f"{place}: holds {names}; expected Area_{test_area} and others beside it")
    random = np.random.default_rng(seed)
    return DataSet(
        _split(train, points, stride, random),
        _split(test, points, _SIDE, random),
        classes=len(CLASSES),
    )


def _split(
    areas: list[Path], points: int, stride: float, random: np.random.Generator
) -> TensorSplit:
    blocks, targets = [], []
    for area in areas:
        rooms = sorted(path for path in area.iterdir() if (path / "Annotations").is_dir())
        if not rooms:
            raise TbnError(f"{area}: holds no room with a folder Annotations")
        for room in rooms:
            table, labels = _read_room(room)
            for features, inside in _blocks(table, stride):
                chosen = pick(len(features), points, random)
                blocks.append(features[chosen].T)
                targets.append(labels[inside][chosen])
    if not blocks:
        raise TbnError(f"{areas[0]}: no block has {_LEAST} points")
    return TensorSplit((torch.from_numpy(np.stack(blocks)),), torch.from_numpy(np.stack(targets)))


def _read_room(room: Path) -> tuple[np.ndarray, np.ndarray]:
    """All points of a room, ``(points, 6)`` with its least corner at the origin, and classes."""
    tables, labels = [], []
    files = sorted((room / "Annotations").glob("*.txt"))
    if not files:
        raise TbnError(f"{room}/Annotations: holds no text files of objects")
    for path in files:
        kind = path.stem.rpartition("_")[0]
        # Stairs, rare, are no class of their own in the benchmark.
        kind = "clutter" if kind == "stairs" else kind
        if kind not in CLASSES:
            raise TbnError(
                f"{path}: expected <class>_<number>.txt with one of {', '.join(CLASSES)}"
            )
        tables.append(read_points(path, 6))
        labels.append(np.full(len(tables[-1]), CLASSES.index(kind), np.int64))
    table = np.concatenate(tables)
    table[:, :3] -= table[:, :3].min(0)
    return table, np.concatenate(labels)


def _blocks(table: np.ndarray, stride: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features ``(points, 9)`` and indices of the points of each block."""
    size = table[:, :3].max(0)
    counts = np.maximum(np.ceil((size[:2] - _SIDE) / stride).astype(int), 0) + 1
    place = table[:, :3] / np.where(size > 0, size, 1)
    for column, row in np.ndindex(*counts):
        corner = np.array([column, row]) * stride
        apart = table[:, :2] - corner
        inside = np.flatnonzero(((apart >= 0) & (apart <= _SIDE)).all(1))
        if len(inside) < _LEAST:
            continue
        middle = np.array([*(corner + _SIDE / 2), 0.0])
        parts = (table[inside, :3] - middle, table[inside, 3:] / 255, place[inside])
        yield np.concatenate(parts, axis=1).astype(np.float32), inside
