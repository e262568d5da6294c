"""ShapeNet part segmentation (Yi et al., 2016), in the published form that has normals.

``shapenetcore_partanno_segmentation_benchmark_v0_normal`` holds ``synsetoffset2category.txt``, for
each category a folder of text files with x, y, z, a normal and the part of each point, and the
lists ``train_test_split/shuffled_{train,val,test}_file_list.json``.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.training.data import DataSet, TensorSplit, require_folder
from tbn_tvm.training.data.clouds import (
    in_unit_sphere,
    pick,
    read_lines,
    read_names,
    read_points,
)

FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
_PARTS = {
    "Airplane": 4,
    "Bag": 2,
    "Cap": 2,
    "Car": 4,
    "Chair": 4,
    "Earphone": 3,
    "Guitar": 3,
    "Knife": 2,
    "Lamp": 4,
    "Laptop": 2,
    "Motorbike": 6,
    "Mug": 2,
    "Pistol": 3,
    "Rocket": 3,
    "Skateboard": 3,
    "Table": 3,
}
CATEGORIES = tuple(_PARTS)
"""In the order of their one-hot numbers."""

_ENDS = list(itertools.accumulate(_PARTS.values()))
PARTS = {
    number: tuple(range(end - count, end))
    for number, (count, end) in enumerate(zip(_PARTS.values(), _ENDS, strict=True))
}
"""Part labels by category; the 50 parts are numbered through."""


def load(folder: Path, points: int = 2048, normals: bool = False, seed: int = 0) -> DataSet:
    """ShapeNet part from its folder, or the folder that holds it.

    Parameters
    ----------
    folder : Path
        Where it is.
    points : int
        Of each shape, chosen at random once; a shape with fewer gives some of them twice.
    normals : bool
        Whether normals follow the coordinates.
    seed : int
        Of that choice.

    Returns
    -------
    DataSet
        Inputs float32 ``(N, 3 or 6, points)``, in the unit sphere, and categories one-hot ``(N,
        16)``; targets int64 ``(N, points)``.

    Raises
    ------
    TbnError
        Where files are missing or malformed.
    """
    if points < 1:
        raise UsageError(f"points {points}: expected at least 1")
    folder = Path(folder)
    require_folder(folder, FOLDER)
    mapping = "synsetoffset2category.txt"
    place = folder if (folder / mapping).is_file() else folder / FOLDER
    if not (place / mapping).is_file():
        raise TbnError(f"{folder}: holds neither {mapping} nor {FOLDER}/{mapping}")
    numbers = _categories(place / mapping)
    random = np.random.default_rng(seed)
    splits = {
        name: _read(place, name, numbers, points, normals, random)
        for name in ("train", "val", "test")
    }
    return DataSet(
        splits["train"],
        splits["test"],
        validation=splits["val"],
        classes=sum(_PARTS.values()),
        parts=PARTS,
    )


def _categories(path: Path) -> dict[str, int]:
    """Numbers of categories by the folders' names."""
    numbers = {}
    for line in read_lines(path, "a category and its folder a line"):
        fields = line.split()
        if len(fields) != 2 or fields[0] not in _PARTS:
            raise TbnError(
                f"{path}: {line!r}: expected one of {', '.join(CATEGORIES)}, and its folder"
            )
        numbers[fields[1]] = CATEGORIES.index(fields[0])
    return numbers


def _read(
    folder: Path,
    split: str,
    numbers: dict[str, int],
    points: int,
    normals: bool,
    random: np.random.Generator,
) -> TensorSplit:
    listing = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
    clouds, categories, targets = [], [], []
    for name in read_names(listing):
        # "shape_data/<folder>/<shape>"
        *_, kind, shape = ("", *name.split("/"))
        if kind not in numbers:
            raise TbnError(f"{listing}: {name!r} is in no folder of a category")
        path = folder / kind / f"{shape}.txt"
        table = read_points(path, 7)
        labels = table[:, 6].astype(np.int64)
        parts = PARTS[numbers[kind]]
        if not np.isin(labels, parts).all():
            wrong = labels[~np.isin(labels, parts)][0]
            raise TbnError(
                f"{path}: part {wrong}: {CATEGORIES[numbers[kind]]} has {parts[0]} to {parts[-1]}"
            )
        cloud = table[:, : 6 if normals else 3]
        cloud[:, :3] = in_unit_sphere(cloud[:, :3])
        chosen = pick(len(cloud), points, random)
        clouds.append(cloud[chosen].T)
        targets.append(labels[chosen])
        categories.append(numbers[kind])
    if not clouds:
        raise TbnError(f"{listing}: names no shapes")
    one_hot = np.eye(len(CATEGORIES), dtype=np.float32)[categories]
    inputs = (torch.from_numpy(np.stack(clouds)), torch.from_numpy(one_hot))
    return TensorSplit(inputs, torch.from_numpy(np.stack(targets)))
