"""Small data sets in the formats that people have."""

import struct

import numpy as np
import pytest


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
