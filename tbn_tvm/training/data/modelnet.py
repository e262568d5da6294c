"""ModelNet40 (Wu et al., arXiv:1406.5670) as points, in either of two published forms.

``modelnet40_ply_hdf5_2048`` (Qi et al.): HDF5 files of 2,048 points a shape, named in
``train_files.txt`` and ``test_files.txt``, classes in ``shape_names.txt``.
``modelnet40_normal_resampled``: a text file of 10,000 points with normals a shape, the farthest
from one another first; names in ``modelnet40_train.txt``, ``modelnet40_test.txt`` and
``modelnet40_shape_names.txt``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tbn_tvm.errors import TbnError, ToolError, UsageError
from tbn_tvm.training.data import DataSet, TensorSplit, require_folder
from tbn_tvm.training.data.clouds import in_unit_sphere, read_lines, read_points

_HDF5, _TEXT = "modelnet40_ply_hdf5_2048", "modelnet40_normal_resampled"
_WANTED = f"{_HDF5} or {_TEXT}"


def load(folder: Path, points: int = 1024, normals: bool = False) -> DataSet:
    """ModelNet40 from one of its folders, or from the folder that holds it.

    Parameters
    ----------
    folder : Path
        Where it is.
    points : int
        Of each shape, the first of those there are.
    normals : bool
        Whether normals follow the coordinates.

    Returns
    -------
    DataSet
        Inputs float32 ``(N, 3 or 6, points)``, each shape moved and scaled into the unit sphere;
        targets int64 ``(N,)``.

    Raises
    ------
    TbnError
        Where files are missing or malformed, or hold fewer points.
    ToolError
        Where HDF5 files are to be read and h5py is not installed.
    """
    if points < 1:
        raise UsageError(f"points {points}: expected at least 1")
    folder = Path(folder)
    require_folder(folder, _WANTED)
    for place in (folder, folder / _HDF5, folder / _TEXT):
        if (place / "train_files.txt").is_file():
            classes = read_lines(place / "shape_names.txt", "names of classes")
            splits = [_from_hdf5(place, name, points, normals) for name in ("train", "test")]
        elif (place / "modelnet40_train.txt").is_file():
            classes = read_lines(place / "modelnet40_shape_names.txt", "names of classes")
            splits = [
                _from_text(place, name, classes, points, normals) for name in ("train", "test")
            ]
        else:
            continue
        for _, labels in splits:
            for label in (labels.min(), labels.max()):
                if not 0 <= label < len(classes):
                    raise TbnError(f"{place}: label {label}, but {len(classes)} classes")
        train, test = (_split(*split) for split in splits)
        return DataSet(train, test, classes=len(classes))
    raise TbnError(f"{folder}: holds no ModelNet40; expected {_WANTED}")


def _split(clouds: np.ndarray, labels: np.ndarray) -> TensorSplit:
    clouds[..., :3] = in_unit_sphere(clouds[..., :3])
    inputs = torch.from_numpy(np.ascontiguousarray(clouds.transpose(0, 2, 1)))
    return TensorSplit((inputs,), torch.from_numpy(labels))


def _from_hdf5(
    folder: Path, split: str, points: int, normals: bool
) -> tuple[np.ndarray, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise ToolError(
            "reading HDF5 files needs h5py, which is not installed: pip install 'tbn-tvm[train]'"
        ) from None
    clouds, labels = [], []
    for line in read_lines(folder / f"{split}_files.txt", "names of HDF5 files"):
        # The published list has paths from where its authors ran; the files lie beside it.
        path = folder / Path(line).name
        try:
            with h5py.File(path) as file:
                parts = [file["data"][:, :points]]
                parts += [file["normal"][:, :points]] if normals else []
                label = np.asarray(file["label"]).reshape(-1)
        except KeyError as error:
            raise TbnError(f"{path}: lacks a data set: {error.args[0]}") from None
        except (OSError, TypeError, ValueError) as error:
            raise TbnError(f"{path}: cannot be read as HDF5: {error}") from None
        for part in parts:
            if part.shape != (len(label), points, 3) or not len(label):
                raise TbnError(
                    f"{path}: coordinates {part.shape} and labels {label.shape}: expected "
                    f"(N, {points} or more, 3) and (N,)"
                )
        clouds.append(np.concatenate(parts, axis=2).astype(np.float32))
        labels.append(label.astype(np.int64))
    return np.concatenate(clouds), np.concatenate(labels)


def _from_text(
    folder: Path, split: str, classes: list[str], points: int, normals: bool
) -> tuple[np.ndarray, np.ndarray]:
    clouds, labels = [], []
    listing = folder / f"modelnet40_{split}.txt"
    for name in read_lines(listing, "names of shapes"):
        kind = name.rpartition("_")[0]
        if kind not in classes:
            raise TbnError(f"{listing}: {name}: {kind!r} is not among the names of classes")
        path = folder / kind / f"{name}.txt"
        cloud = read_points(path, 6, ",", points)
        if len(cloud) < points:
            raise TbnError(f"{path}: has {len(cloud)} points; expected {points}")
        clouds.append(cloud if normals else cloud[:, :3])
        labels.append(classes.index(kind))
    return np.stack(clouds), np.array(labels, np.int64)
