"""The reader of MNIST's IDX files, and what it refuses."""

import gzip
import struct

import numpy as np
import pytest
import torch

from tbn_tvm.errors import TbnError
from tbn_tvm.training.data import load
from tbn_tvm.training.data.mnist import load_digits, read_idx

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as IDX."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Twenty training and ten test images, uncompressed."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        (tmp_path / f"{split}-{IMAGES}").write_bytes(idx(images))
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{split}-{LABELS}").write_bytes(idx(labels))
    return tmp_path


def test_pixels_are_scaled_to_one_and_flattened(folder):
    digits = load_digits(folder)
    raw = read_idx(folder / f"t10k-{IMAGES}")
    assert digits.train_images.shape == (20, 784)
    assert digits.train_images.dtype == torch.float32
    np.testing.assert_array_equal(digits.test_images.numpy() * 255, raw.reshape(10, 784))
    assert digits.test_labels.tolist() == list(range(10))
    assert digits.train_labels.dtype == torch.int64


def test_for_training_pixels_stay_bytes(folder):
    data = load("mnist", folder)
    raw = read_idx(folder / f"train-{IMAGES}")
    (images,), labels = data.train.inputs, data.train.targets
    assert (images.dtype, images.shape, data.classes) == (torch.uint8, (20, 1, 28, 28), 10)
    np.testing.assert_array_equal(images[:, 0].numpy(), raw)
    assert labels.tolist() == [n % 10 for n in range(20)]
    assert (len(data.test), data.validation) == (10, None)


def test_compressed_files_read_the_same(folder):
    plain = load_digits(folder)
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    compressed = load_digits(folder)
    assert torch.equal(plain.train_images, compressed.train_images)
    assert torch.equal(plain.test_labels, compressed.test_labels)


def test_a_subfolder_called_mnist_is_found(folder):
    (folder / "mnist").mkdir()
    for path in list(folder.glob("*ubyte")):
        path.rename(folder / "mnist" / path.name)
    assert len(load_digits(folder).train_labels) == 20


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 0), (1, 2, 3, 4)])
def test_arrays_of_any_rank_are_read(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "file").write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "file"), array)


# -- refused ---------------------------------------------------------------------------------


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(TbnError, match="no such folder; expected the four MNIST IDX files"):
        load_digits(tmp_path / "none")


@pytest.mark.parametrize("name", [f"train-{IMAGES}", f"t10k-{LABELS}"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(TbnError, match=rf"neither {name} nor {name}\.gz"):
        load_digits(folder)


WHOLE = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_truncated_file_is_refused(tmp_path, length):
    (tmp_path / "file").write_bytes(WHOLE[:length])
    with pytest.raises(TbnError, match="file: "):
        read_idx(tmp_path / "file")


@pytest.mark.parametrize("length", range(0, len(gzip.compress(WHOLE)), 3))
def test_a_truncated_compressed_file_is_refused(tmp_path, length):
    (tmp_path / "file.gz").write_bytes(gzip.compress(WHOLE)[:length])
    with pytest.raises(TbnError, match=r"file\.gz: "):
        read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize("offset", range(len(gzip.compress(WHOLE))))
def test_a_damaged_compressed_file_is_refused_or_harmless(tmp_path, offset):
    damaged = bytearray(gzip.compress(WHOLE))
    damaged[offset] ^= 0x10
    (tmp_path / "file.gz").write_bytes(damaged)
    try:
        array = read_idx(tmp_path / "file.gz")
    except TbnError:
        return
    assert idx(array) == WHOLE  # the byte was a date, say


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x0d" + WHOLE[3:],
        b"\x01\x00\x08" + WHOLE[3:],
        WHOLE + b"\x00",
        gzip.compress(WHOLE),
        b"\x00\x00\x08\xff" + bytes(100),
    ],
    ids=["floats", "magic", "too long", "compressed under a plain name", "rank 255"],
)
def test_what_is_no_idx_file_of_bytes_is_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(TbnError, match="file: "):
        read_idx(tmp_path / "file")


def test_an_uncompressed_file_under_a_compressed_name_is_refused(tmp_path):
    (tmp_path / "file.gz").write_bytes(WHOLE)
    with pytest.raises(TbnError, match="cannot be read"):
        read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        (f"train-{IMAGES}", np.zeros((20, 28, 27), np.uint8)),
        (f"train-{IMAGES}", np.zeros((19, 28, 28), np.uint8)),
        (f"t10k-{LABELS}", np.zeros(11, np.uint8)),
        (f"t10k-{LABELS}", np.zeros((10, 1), np.uint8)),
        (f"t10k-{LABELS}", np.zeros((), np.uint8)),
    ],
)
def test_files_that_do_not_belong_together_are_refused(folder, name, array):
    (folder / name).write_bytes(idx(array))
    with pytest.raises(TbnError, match=r"expected \(N, 28, 28\) and \(N,\)"):
        load_digits(folder)


def test_no_images_at_all_are_refused(folder):
    (folder / f"t10k-{IMAGES}").write_bytes(idx(np.zeros((0, 28, 28), np.uint8)))
    (folder / f"t10k-{LABELS}").write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(TbnError, match="no test images"):
        load_digits(folder)


def test_a_label_that_is_no_digit_is_refused(folder):
    (folder / f"train-{LABELS}").write_bytes(idx(np.full(20, 10, np.uint8)))
    with pytest.raises(TbnError, match="train label 10 is no digit"):
        load_digits(folder)
