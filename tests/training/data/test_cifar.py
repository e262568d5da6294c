"""CIFAR-10 in each of its forms, and what is refused."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from tbn_tvm.errors import TbnError
from tbn_tvm.training.data.cifar import CLASSES, load

NAMES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def batch(images: np.ndarray, labels: list, protocol: int = 2) -> bytes:
    """A batch as published: a dict with keys that Python 3 reads as bytes."""
    held = {b"data": images.reshape(len(images), -1), b"labels": labels, b"batch_label": b"a"}
    return pickle.dumps(held, protocol)


@pytest.fixture
def images():
    """Two images a batch: bytes (12, 3, 32, 32)."""
    return np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), np.uint8)


@pytest.fixture
def folder(tmp_path, images):
    """The archive, unpacked: labels 0, 1 in the first batch, 2, 3 in the second ..."""
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    for number, name in enumerate(NAMES):
        labels = [(2 * number) % 10, (2 * number + 1) % 10]
        (inner / name).write_bytes(batch(images[2 * number : 2 * number + 2], labels))
    return tmp_path


def test_the_unpacked_archive(folder, images):
    data = load(folder)
    assert torch.equal(data.train.inputs[0], torch.from_numpy(images[:10]))
    assert data.train.targets.tolist() == list(range(10))
    assert torch.equal(data.test.inputs[0], torch.from_numpy(images[10:]))
    assert data.test.targets.tolist() == [0, 1]


def test_the_packed_archive_reads_the_same(folder, tmp_path_factory):
    packed = tmp_path_factory.mktemp("packed")
    with tarfile.open(packed / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    assert torch.equal(load(packed).train.inputs[0], load(folder).train.inputs[0])


def write_zips(folder, members):
    """train.zip and test.zip with the same members: name and image."""
    for split in ("train", "test"):
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for name, image in members:
                data = io.BytesIO()
                image.save(data, "JPEG", quality=95)
                archive.writestr(name, data.getvalue())


def test_jpeg_files_in_zips(tmp_path):
    (tmp_path / "cifar10").mkdir()
    colours = {"truck": (250, 10, 10), "airplane": (10, 250, 10), "frog": (10, 10, 250)}
    members = [
        (f"{kind}/0001.jpg", Image.new("RGB", (32, 32), colour)) for kind, colour in colours.items()
    ]
    write_zips(tmp_path / "cifar10", members)
    data = load(tmp_path)
    assert [CLASSES[label] for label in data.train.targets] == ["airplane", "frog", "truck"]
    means = data.train.inputs[0].double().mean((2, 3))
    expected = [colours[kind] for kind in ("airplane", "frog", "truck")]
    torch.testing.assert_close(means, torch.tensor(expected).double(), atol=4, rtol=0)


def test_what_an_operating_system_adds_to_a_zip_is_no_image(tmp_path):
    write_zips(tmp_path, [("train/cat/1.JPG", Image.new("RGB", (32, 32)))])
    for split in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "a") as archive:
            archive.writestr("__MACOSX/train/cat/._1.JPG", b"\0\5\x16\7")
            archive.writestr("train/readme.txt", b"")
    assert load(tmp_path).train.targets.tolist() == [CLASSES.index("cat")]


def test_grey_and_cmyk_images_become_rgb(tmp_path):
    write_zips(tmp_path, [(f"cat/{mode}.jpg", Image.new(mode, (32, 32))) for mode in ("L", "CMYK")])
    assert load(tmp_path).train.inputs[0].shape == (2, 3, 32, 32)


# -- refused ---------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    with pytest.raises(TbnError, match="holds no CIFAR-10; expected cifar-10-batches-py"):
        load(tmp_path)


class Hostile:
    """Asks for a command to be run when it is read."""

    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/should-not-exist",)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (pickle.dumps(Hostile()), r"it calls posix\.system, which is not data"),
        (b"", "not a pickle of plain data, or damaged"),
        (b"\x80\x02garbage", "not a pickle of plain data, or damaged"),
        (pickle.dumps([1]), "holds list, expected a dict of a batch"),
        (batch(np.zeros((2, 3, 32, 31), np.uint8), [0, 1]), r"expected bytes \(N, 3072\)"),
        (batch(np.zeros((2, 3, 32, 32), np.float32), [0, 1]), r"expected bytes \(N, 3072\)"),
        (batch(np.zeros((2, 3, 32, 32), np.uint8), [0]), r"expected bytes \(N, 3072\)"),
        (batch(np.zeros((2, 3, 32, 32), np.uint8), [0, 10]), "a label is not one of 0 to 9"),
    ],
)
def test_a_batch_that_is_none_is_refused_with_its_name(folder, data, told):
    (folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(data)
    with pytest.raises(TbnError, match=f"data_batch_3: .*{told}"):
        load(folder)


def test_a_missing_batch_is_named(folder):
    (folder / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(TbnError, match="test_batch: cannot be read: No such file"):
        load(folder)


def test_an_archive_without_batches_and_a_broken_one(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(TbnError, match="lacks cifar-10-batches-py/data_batch_1"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TbnError, match=r"tar\.gz: cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("plane/1.jpg", 32, "'plane' is no class of CIFAR-10"),
        ("frog/1.jpg", 31, r"frog/1.jpg: is \(31, 31\), expected \(32, 32\)"),
        ("frog/1.txt", 32, "holds no JPEG files"),
    ],
)
def test_zips_of_something_else(tmp_path, name, size, told):
    write_zips(tmp_path, [(name, Image.new("RGB", (size, size)))])
    with pytest.raises(TbnError, match=told):
        load(tmp_path)


def test_a_broken_image_and_a_broken_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("frog/1.jpg", b"no image")
    with pytest.raises(TbnError, match=r"train\.zip: frog/1\.jpg: cannot be read"):
        load(tmp_path)
    (tmp_path / "train.zip").write_bytes(b"no zip")
    with pytest.raises(TbnError, match=r"train\.zip: cannot be read"):
        load(tmp_path)


def test_a_zip_whose_compressed_bytes_are_damaged(tmp_path):
    path = tmp_path / "train.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frog/1.jpg", bytes(range(256)) * 40)
    data = bytearray(path.read_bytes())
    data[40:60] = b"\xff" * 20  # behind the member's header
    path.write_bytes(data)
    with pytest.raises(TbnError, match=r"train\.zip: frog/1\.jpg: cannot be read"):
        load(tmp_path)


def test_an_image_of_absurd_size(tmp_path):
    write_zips(tmp_path, [("frog/1.jpg", Image.new("1", (20000, 20000)))])
    with pytest.raises(TbnError, match=r"frog/1\.jpg: cannot be read: Image size"):
        load(tmp_path)


def test_an_archive_whose_check_sum_differs(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # gzip ends with the check sum and the length
    path.write_bytes(data)
    with pytest.raises(TbnError, match=r"tar\.gz: cannot be read: CRC check failed"):
        load(path.parent)
