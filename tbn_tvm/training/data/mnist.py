"""MNIST from its four IDX files (LeCun, Cortes, Burges), compressed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tbn_tvm.errors import TbnError
from tbn_tvm.training.data import DataSet, TensorSplit, require_folder

_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Digits:
    """Images as float32 of shape ``(N, 784)`` in [0, 1] (pixel / 255), labels as int64 ``(N,)``."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load(folder: Path) -> DataSet:
    """MNIST for training: images as uint8 ``(N, 1, 28, 28)``.

    Raises
    ------
    TbnError
        Where a file is missing or is no IDX file of the right size.
    """
    arrays = _read_files(folder)
    splits = (
        TensorSplit(
            (torch.from_numpy(arrays[f"{split}_images"])[:, None],),
            torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64)),
        )
        for split in ("train", "test")
    )
    # Of the training images' pixels, in [0, 1].
    return DataSet(*splits, classes=10, mean=(0.1307,), deviation=(0.3081,))


def load_digits(folder: Path) -> Digits:
    """MNIST as the shipped model takes it, from a folder or its subfolder ``mnist``.

    Raises
    ------
    TbnError
        Where a file is missing or is no IDX file of the right size.
    """
    arrays = _read_files(folder)
    return Digits(
        _pixels(arrays["train_images"]),
        torch.from_numpy(arrays["train_labels"].astype(np.int64)),
        _pixels(arrays["test_images"]),
        torch.from_numpy(arrays["test_labels"].astype(np.int64)),
    )


def _read_files(folder: Path) -> dict[str, np.ndarray]:
    folder = Path(folder)
    require_folder(folder, "the four MNIST IDX files")
    if not _find(folder, _FILES["train_images"]) and (folder / "mnist").is_dir():
        folder = folder / "mnist"
    arrays = {}
    for name, stem in _FILES.items():
        path = _find(folder, stem)
        if path is None:
            raise TbnError(f"{folder}: holds neither {stem} nor {stem}.gz, an MNIST IDX file")
        arrays[name] = read_idx(path)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise TbnError(
                f"{folder}: {split} images {images.shape} and labels {labels.shape}: expected "
                "(N, 28, 28) and (N,)"
            )
        if not labels.size:
            raise TbnError(f"{folder}: holds no {split} images")
        if labels.max() > 9:
            raise TbnError(f"{folder}: the {split} label {labels.max()} is no digit")
    return arrays


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array from an IDX file, gzip-compressed where its name ends in ``.gz``."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise TbnError(f"{path}: cannot be read: {error}") from None
    rank = data[3] if len(data) >= 4 else 0
    if len(data) < 4 + 4 * rank or data[:3] != b"\x00\x00\x08":
        raise TbnError(f"{path}: not an IDX file of bytes")
    shape = tuple(np.frombuffer(data, ">u4", rank, 4).tolist())
    if len(data) != 4 + 4 * rank + math.prod(shape):
        raise TbnError(f"{path}: {len(data)} bytes do not hold an array of shape {shape}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


def _find(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)) / 255
