"""ImageNet as published (ILSVRC 2012), and other folders of one subfolder a class.

Read from the files as they are needed::

    train/<class>/*.JPEG
    val/<class>/*.JPEG                      or, flat, as the archive unpacks:
    val/ILSVRC2012_val_00000001.JPEG ...    with the development kit's
    ILSVRC2012_devkit_t12/data/{meta.mat,ILSVRC2012_validation_ground_truth.txt}

Classes in alphabetical order of their folders are labels 0, 1, ... Files and folders whose names
begin with a dot, which systems and editors leave, do not count. The development kit numbers
classes in an order of its own, which ``meta.mat`` holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from tbn_tvm.errors import TbnError, ToolError, UsageError
from tbn_tvm.training.data import Batch, DataSet, require_folder

_SUFFIXES = (".jpeg", ".jpg", ".png")
_KIT = Path("ILSVRC2012_devkit_t12") / "data"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_WANTED = "train/<class>/*.JPEG and val"


def load(folder: Path, side: int = 224, workers: int = 8) -> DataSet:
    """ImageNet from a folder, or its subfolder ``imagenet``.

    Parameters
    ----------
    folder : Path
        Holds ``train`` and ``val``.
    side : int
        Of the square images that a model takes. Training images are crops of 8 to 100 % of the
        area, resized; others are resized to ``side / 0.875`` and cropped in the middle.
    workers : int
        Processes that decode; 0 for none.

    Raises
    ------
    TbnError
        Where folders or labels are missing, or do not belong together.
    ToolError
        Where Pillow is not installed.
    """
    _require_pillow()
    if side < 1 or workers < 0:
        raise UsageError(f"side {side}, workers {workers}: expected at least 1 and at least 0")
    folder = Path(folder)
    require_folder(folder, _WANTED)
    if not (folder / "train").is_dir() and (folder / "imagenet").is_dir():
        folder = folder / "imagenet"
    for name in ("train", "val"):
        require_folder(folder / name, _WANTED)
    classes = _classes(folder / "train")
    train = _labelled(folder / "train", classes)
    _check_none_is_empty(folder / "train", classes, train[1])
    if _folders(folder / "val"):
        test = _labelled(folder / "val", classes)
    else:
        test = _flat(folder, classes)
    return DataSet(
        FileSplit(*train, side, workers),
        FileSplit(*test, side, workers),
        classes=len(classes),
        # Of the training images' pixels, in [0, 1], as everybody uses them.
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
    )


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ToolError(
            "reading images needs Pillow, which is not installed: pip install 'tbn-tvm[train]'"
        ) from None


def _classes(train: Path) -> dict[str, int]:
    names = [child.name for child in _folders(train)]
    if not names:
        raise TbnError(f"{train}: holds no folders; expected one a class")
    return {name: label for label, name in enumerate(names)}


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )


def _labelled(folder: Path, classes: dict[str, int]) -> tuple[list[Path], list[int]]:
    """Files and labels of a folder of classes."""
    paths, labels = [], []
    for child in _folders(folder):
        if child.name not in classes:
            raise TbnError(f"{child}: is no class of the training images")
        found = _images(child)
        paths += found
        labels += [classes[child.name]] * len(found)
    if not paths:
        raise TbnError(f"{folder}: its classes hold no images; expected .JPEG files")
    return paths, labels


def _check_none_is_empty(train: Path, classes: dict[str, int], labels: list[int]) -> None:
    """A class without images would take a label, and move those of the classes behind it."""
    held = set(labels)
    empty = sorted(name for name, label in classes.items() if label not in held)
    if empty:
        raise TbnError(
            f"{train / empty[0]}: holds no images ({len(empty)} such of {len(classes)} classes); "
            "remove the folder, in val too, or fill it"
        )


def _flat(folder: Path, classes: dict[str, int]) -> tuple[list[Path], list[int]]:
    """Validation files as published, and the development kit's labels for them."""
    val, truth = folder / "val", folder / _KIT / _TRUTH
    if not truth.is_file():
        raise TbnError(
            f"{truth}: no such file; {val} has no folders of classes, so the development kit has "
            "to tell its labels"
        )
    try:
        numbers = [int(line) for line in truth.read_text().split()]
    except (ValueError, UnicodeDecodeError):
        raise TbnError(f"{truth}: expected a class number a line") from None
    paths = _images(val)
    if len(paths) != len(numbers):
        raise TbnError(f"{val}: holds {len(paths)} images, but {truth} has {len(numbers)} labels")
    order = _kit_classes(folder / _KIT)
    labels = []
    for path, number in zip(paths, numbers, strict=True):
        if not 1 <= number <= len(order) or order[number - 1] not in classes:
            raise TbnError(f"{truth}: class {number} of {path.name} is no class of train")
        labels.append(classes[order[number - 1]])
    return paths, labels


def _kit_classes(kit: Path) -> list[str]:
    """Class names in the development kit's order."""
    meta = kit / "meta.mat"
    if not meta.is_file():
        raise TbnError(f"{meta}: no such file; it holds the order of the classes")
    try:
        from scipy.io import loadmat

        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        pairs = [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets]
    except ImportError:
        raise ToolError(
            f"{meta}: reading it needs SciPy, which is not installed: pip install 'tbn-tvm[train]'"
        ) from None
    except Exception as error:  # damaged files raise many kinds
        raise TbnError(f"{meta}: cannot be read: {error}") from None
    # Numbers from 1 on; the first thousand are classes, the rest what groups them.
    return [name for _, name in sorted(pairs)]


@dataclass(frozen=True)
class FileSplit:
    """Images in files, decoded by other processes batch by batch.

    Attributes
    ----------
    paths, labels : list
        Files and their classes.
    side : int
        Of the images given.
    workers : int
        Processes that decode.
    """

    paths: list[Path]
    labels: list[int]
    side: int
    workers: int

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, order: Sequence[Tensor], seed: int | None) -> Iterator[Batch]:
        """See :class:`tbn_tvm.training.data.Split`; a seed stands for random crops."""
        loader = DataLoader(
            _Files(self, seed),
            batch_sampler=[indices.tolist() for indices in order],
            num_workers=min(self.workers, len(order)),
            pin_memory=torch.cuda.is_available(),
            collate_fn=_stack,
        )
        for batch in loader:
            if isinstance(batch, TbnError):
                raise batch
            images, labels = batch
            yield (images,), labels

    def subset(self, indices: Tensor) -> FileSplit:
        """See :class:`tbn_tvm.training.data.Split`."""
        chosen = indices.tolist()
        paths, labels = [self.paths[i] for i in chosen], [self.labels[i] for i in chosen]
        return FileSplit(paths, labels, self.side, self.workers)

    def to(self, _device: torch.device) -> FileSplit:
        """It stays where the files are."""
        return self


def _stack(items: list) -> Batch | TbnError:
    """A batch, or what went wrong: raised in another process it would come with its trace."""
    failed = [item for item in items if isinstance(item, TbnError)]
    return failed[0] if failed else default_collate(items)


class _Files(Dataset):
    """A split as PyTorch's loader takes it; an item may be an error."""

    def __init__(self, split: FileSplit, seed: int | None) -> None:
        self._split, self._seed = split, seed

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | TbnError:
        from PIL import Image

        from tbn_tvm.training.data.images import IMAGE_ERRORS

        path = self._split.paths[index]
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except IMAGE_ERRORS as error:
            return TbnError(f"{path}: not an image, or damaged: {error}")
        side = self._split.side
        if self._seed is None:
            image = image.resize((side, side), Image.Resampling.BILINEAR, _middle(image.size))
        else:
            random = np.random.default_rng((self._seed, index))
            box = random_box(*image.size, random)
            image = image.resize((side, side), Image.Resampling.BILINEAR, box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), self._split.labels[index]


def _middle(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The middle square of an image, 0.875 times its shorter side wide."""
    width, height = size
    half = 0.875 * min(size) / 2
    return width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half


def random_box(
    width: int, height: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """A rectangle of 8 to 100 % of an image's area, 3:4 to 4:3 (Szegedy et al., arXiv:1409.4842).

    Returns
    -------
    tuple of float
        Left, top, right, bottom.
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = float(np.sqrt(area * ratio)), float(np.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
