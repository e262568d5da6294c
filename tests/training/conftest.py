"""Small data sets in the formats that people have."""

import pickle
import struct

import numpy as np
import pytest
from PIL import Image


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_digits(folder, train: int, test: int) -> None:
    """MNIST's four files with two easy classes: a bright upper and a bright lower half."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = random.integers(0, 60, (count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[14 * label : 14 * label + 14] += 150
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with 120 training and 40 test digits."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, 120, 40)
    return folder


def colour(label: int, side: int, random: np.random.Generator) -> np.ndarray:
    """An image ``(side, side, 3)`` of noise in which one of two channels is bright."""
    image = random.integers(0, 80, (side, side, 3), np.uint8)
    image[:, :, label] += 150
    return image


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """CIFAR-10's unpacked Python archive with two easy classes: 60 and 20 images."""
    folder = tmp_path_factory.mktemp("cifar")
    inner = folder / "cifar-10-batches-py"
    inner.mkdir()
    random = np.random.default_rng(0)
    for name, count in {**{f"data_batch_{n}": 12 for n in range(1, 6)}, "test_batch": 20}.items():
        labels = [n % 2 for n in range(count)]
        images = np.stack([colour(label, 32, random).transpose(2, 0, 1) for label in labels])
        batch = {b"data": images.reshape(count, -1), b"labels": labels}
        (inner / name).write_bytes(pickle.dumps(batch))
    return folder


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """ImageNet's folders with two easy classes: 40 and 12 images."""
    folder = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for label in range(2):
            place = folder / split / f"n0000000{label}"
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(colour(label, 36, random)).save(place / f"{number}.JPEG")
    return folder
