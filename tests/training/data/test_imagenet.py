"""Folders of images, as ImageNet is published."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from tbn_tvm.errors import TbnError
from tbn_tvm.training.data.imagenet import load, random_box

CLASSES = ("n00000001", "n00000002", "n00000003")
KIT = "ILSVRC2012_devkit_t12/data"


def colour(label: int) -> tuple:
    """A class's colour: red, green or blue."""
    return tuple(250 if channel == label else 5 for channel in range(3))


def write(path, label: int, size=(40, 30)) -> None:
    """An image of a class's colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(label)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two training images and a validation image a class."""
    for label, name in enumerate(CLASSES):
        for number in range(2):
            write(tmp_path / "train" / name / f"{name}_{number}.JPEG", label)
        write(tmp_path / "val" / name / f"ILSVRC2012_val_{label}.JPEG", label)
    return tmp_path


def flatten(folder, numbers, order) -> None:
    """Validation images as the archive unpacks, with the development kit's labels."""
    for path in sorted((folder / "val").glob("*/*")):
        path.rename(folder / "val" / path.name)
        path.parent.rmdir()
    (folder / KIT).mkdir(parents=True)
    truth = folder / KIT / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{n}\n" for n in numbers))
    synsets = np.zeros(len(order), [("ILSVRC2012_ID", "f8"), ("WNID", "O")])
    for row, (number, name) in zip(synsets, enumerate(order, 1), strict=True):
        row["ILSVRC2012_ID"], row["WNID"] = number, name
    savemat(folder / KIT / "meta.mat", {"synsets": synsets})


def colours_match(split, seed) -> None:
    """Every image has its class's colour and the size asked for."""
    (((images,), labels),) = split.batches([torch.arange(len(split))], seed)
    assert images.shape == (len(split), 3, 16, 16) and images.dtype == torch.uint8
    assert images.double().mean((2, 3)).argmax(1).tolist() == labels.tolist()


@pytest.mark.parametrize("seed", [None, 3], ids=["middle", "random crop"])
def test_images_come_with_their_classes(folder, seed):
    data = load(folder, side=16, workers=0)
    assert (len(data.train), len(data.test), data.classes) == (6, 3, 3)
    colours_match(data.train, seed)
    colours_match(data.test.subset(torch.tensor([2, 0])), seed)


def test_flat_validation_images_take_the_kits_labels(folder):
    # The kit numbers classes otherwise than the alphabet does.
    flatten(folder, numbers=[3, 1, 2], order=[CLASSES[1], CLASSES[2], CLASSES[0]])
    colours_match(load(folder, side=16, workers=0).test, None)


def test_crops_depend_on_seed_and_index_alone(folder):
    gradient = np.linspace(0, 255, 40 * 30 * 3).reshape(30, 40, 3).astype(np.uint8)
    for path in (folder / "train").glob("*/*"):
        Image.fromarray(gradient).save(path)
    split = load(folder, side=16, workers=0).train

    def read(order, seed):
        return torch.cat([x for (x,), _ in split.batches(order, seed)])

    whole = read([torch.arange(6)], 1)
    assert torch.equal(read([torch.tensor([5, 2]), torch.tensor([0])], 1), whole[[5, 2, 0]])
    assert not torch.equal(read([torch.arange(6)], 2), whole)


def test_boxes_lie_inside():
    random = np.random.default_rng(0)
    for width, height in ((40, 30), (30, 400), (1, 1)):
        for _ in range(50):
            left, top, right, bottom = random_box(width, height, random)
            assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9


def test_stray_files_and_hidden_folders_do_not_count(folder):
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "readme.txt").write_text("")
    (folder / "train" / CLASSES[0] / "._n00000001_0.JPEG").write_bytes(b"\0\5\x16\7")
    (folder / "val" / ".cache").mkdir()
    data = load(folder, side=16, workers=0)
    assert (len(data.train), len(data.test), data.classes) == (6, 3, 3)
    colours_match(data.train, None)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P"])
def test_images_of_other_modes_become_rgb(folder, mode):
    path = folder / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    Image.new(mode, (40, 30)).save(path, "GIF" if mode == "P" else "JPEG")
    split = load(folder, side=16, workers=0).train
    (((images,), _),) = split.batches([torch.tensor([0])], None)
    assert images.shape == (1, 3, 16, 16)


# -- refused ---------------------------------------------------------------------------------


def test_missing_folders(folder, tmp_path):
    (folder / "val").rename(folder / "test")
    with pytest.raises(TbnError, match="val: no such folder; expected train/<class>"):
        load(folder)


def test_an_unknown_class_in_the_validation_images(folder):
    write(folder / "val" / "n00000009" / "x.JPEG", 0)
    with pytest.raises(TbnError, match="n00000009: is no class of the training images"):
        load(folder)


def test_labels_that_do_not_fit_the_flat_images(folder):
    flatten(folder, numbers=[1, 2], order=CLASSES)
    with pytest.raises(TbnError, match=r"holds 3 images, but .* has 2 labels"):
        load(folder)
    truth = folder / KIT / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n4\n")
    with pytest.raises(TbnError, match=r"class 4 of ILSVRC2012_val_2\.JPEG is no class of train"):
        load(folder)
    truth.write_text("one\n")
    with pytest.raises(TbnError, match="expected a class number a line"):
        load(folder)
    truth.unlink()
    with pytest.raises(TbnError, match="the development kit has to tell its labels"):
        load(folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line(folder, workers):
    path = folder / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    path.write_bytes(b"no image")
    split = load(folder, workers=workers).train
    with pytest.raises(TbnError, match=r"^[^\n]*n00000001_0\.JPEG: not an image, or [^\n]*$"):
        list(split.batches([torch.tensor([0])], None))


def test_an_image_of_absurd_size_is_refused(folder):
    path = folder / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    Image.new("1", (20000, 20000)).save(path, "PNG")
    split = load(folder, workers=0).train
    with pytest.raises(TbnError, match=r"n00000001_0\.JPEG: .* Image size"):
        list(split.batches([torch.tensor([0])], None))


def test_a_class_without_training_images_is_refused(folder):
    for path in (folder / "train" / CLASSES[1]).iterdir():
        path.unlink()
    with pytest.raises(TbnError, match=r"n00000002: holds no images \(1 such of 3 classes\)"):
        load(folder)
