"""CIFAR-10 (Krizhevsky, 2009): the published Python archive, or JPEG files in two zips.

The archive is ``cifar-10-batches-py``, as a folder or inside ``cifar-10-python.tar.gz``. The zips
are ``train.zip`` and ``test.zip``, each with members ``<class>/<name>.jpg``; classes in
alphabetical order, which is the order of the archive's labels, are labels 0 to 9.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from tbn_tvm.errors import TbnError, ToolError
from tbn_tvm.training.data import DataSet, TensorSplit, require_folder
from tbn_tvm.training.data.plain_pickle import load_plain

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_BATCHES = "cifar-10-batches-py"
_ARCHIVE = "cifar-10-python.tar.gz"
_MEMBERS = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
_WANTED = f"{_BATCHES}, {_ARCHIVE}, or train.zip and test.zip of JPEG files"
_SIDE = 32


def load(folder: Path) -> DataSet:
    """CIFAR-10 from a folder, or its subfolder ``cifar10``: uint8 ``(N, 3, 32, 32)``.

    Raises
    ------
    TbnError
        Where files are missing or malformed.
    ToolError
        Where JPEG files are to be read and Pillow is not installed.
    """
    folder = Path(folder)
    require_folder(folder, _WANTED)
    for place in (folder, folder / "cifar10"):
        if (place / _BATCHES).is_dir():
            files = {
                name: _read(place / _BATCHES / name)
                for names in _MEMBERS.values()
                for name in names
            }
            return _from_batches(place / _BATCHES, files)
        if (place / _ARCHIVE).is_file():
            return _from_batches(place / _ARCHIVE, _read_archive(place / _ARCHIVE))
        if (place / "train.zip").is_file():
            return _data_set(*(_from_zip(place / f"{split}.zip") for split in ("train", "test")))
    raise TbnError(f"{folder}: holds no CIFAR-10; expected {_WANTED}")


def _data_set(train: TensorSplit, test: TensorSplit) -> DataSet:
    # Of the training images' pixels, in [0, 1], a channel.
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return DataSet(train, test, classes=10, mean=mean, deviation=deviation)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TbnError(f"{path}: cannot be read: {error.strerror}") from None


def _read_archive(path: Path) -> dict[str, bytes]:
    """The batches inside a tar file, read in place: nothing is unpacked to disk."""
    wanted = {f"{_BATCHES}/{name}": name for names in _MEMBERS.values() for name in names}
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name in wanted:
                    found[wanted[member.name]] = archive.extractfile(member).read()
            while archive.fileobj.read(1 << 20):
                pass  # to the end, where gzip's check sum is
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise TbnError(f"{path}: cannot be read: {error}") from None
    missing = sorted(set(wanted.values()) - set(found))
    if missing:
        raise TbnError(f"{path}: lacks {_BATCHES}/{missing[0]}")
    return found


def _from_batches(where: Path, files: dict[str, bytes]) -> DataSet:
    splits = []
    for names in _MEMBERS.values():
        parts = [_batch(f"{where}: {name}", files[name]) for name in names]
        images = np.concatenate([images for images, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        splits.append(TensorSplit((torch.from_numpy(images),), torch.from_numpy(labels)))
    return _data_set(*splits)


def _batch(where: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one pickled batch."""
    batch = load_plain(data, where)
    if not isinstance(batch, dict):
        raise TbnError(f"{where}: holds {type(batch).__name__}, expected a dict of a batch")
    images, labels = batch.get(b"data"), batch.get(b"labels")
    size = 3 * _SIDE * _SIDE
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != size
        or not isinstance(labels, list)
        or len(labels) != len(images)
        or not labels
    ):
        raise TbnError(f"{where}: expected bytes (N, {size}) under 'data', N under 'labels'")
    if not all(isinstance(label, int) and 0 <= label < len(CLASSES) for label in labels):
        raise TbnError(f"{where}: a label is not one of 0 to {len(CLASSES) - 1}")
    return images.reshape(-1, 3, _SIDE, _SIDE), np.array(labels, np.int64)


def _is_jpeg(name: str) -> bool:
    """Whether a member is an image; macOS adds members ``__MACOSX/.../._<name>`` of its own."""
    return name.lower().endswith((".jpg", ".jpeg")) and not name.startswith("__MACOSX/")


def _from_zip(path: Path) -> TensorSplit:
    """All images of a zip, decoded, in the order of their names."""
    try:
        from PIL import Image

        from tbn_tvm.training.data.images import IMAGE_ERRORS
    except ImportError:
        raise ToolError(
            "reading JPEG files needs Pillow, which is not installed: pip install 'tbn-tvm[train]'"
        ) from None
    if not path.is_file():
        raise TbnError(f"{path}: no such file; expected JPEG files of CIFAR-10 in it")
    images, labels, name = [], [], ""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in filter(_is_jpeg, sorted(archive.namelist())):
                kind = Path(name).parent.name
                if kind not in CLASSES:
                    raise TbnError(f"{path}: {name}: {kind!r} is no class of CIFAR-10")
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    if image.size != (_SIDE, _SIDE):
                        raise TbnError(f"{path}: {name}: is {image.size}, expected (32, 32)")
                    images.append(np.asarray(image.convert("RGB")))
                labels.append(CLASSES.index(kind))
    except (zipfile.BadZipFile, zlib.error, *IMAGE_ERRORS, RuntimeError) as error:
        # zipfile raises RuntimeError for encrypted members.
        raise TbnError(f"{path}: {name + ': ' if name else ''}cannot be read: {error}") from None
    if not images:
        raise TbnError(f"{path}: holds no JPEG files; expected members <class>/<name>.jpg")
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return TensorSplit((stacked,), torch.tensor(labels))
