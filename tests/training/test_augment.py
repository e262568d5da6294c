"""Augmentation of batches: what each step may change, and what it must not."""

import numpy as np
import pytest
import torch

from tbn_tvm.errors import UsageError
from tbn_tvm.training.augment import affine, crop, cutout, flip, parse_steps
from tbn_tvm.training.mixing import mix


def generator(seed: int = 0) -> torch.Generator:
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    """Bytes (40, 2, 9, 7)."""
    return torch.randint(1, 256, (40, 2, 9, 7), generator=generator(1), dtype=torch.uint8)


def test_a_crop_is_a_window_of_the_padded_image(images):
    moved = crop(images, generator(), 2)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    found = set()
    for before, after in zip(padded, moved.numpy(), strict=True):
        windows = {
            (i, j)
            for i in range(5)
            for j in range(5)
            if (before[:, i : i + 9, j : j + 7] == after).all()
        }
        assert len(windows) == 1
        found |= windows
    assert {i for i, _ in found} == {j for _, j in found} == set(range(5))


def test_a_flip_mirrors_about_half(images):
    flipped = flip(images, generator())
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 10 <= sum(mirrored) <= 30


def test_cutout_blackens_one_rectangle_of_all_channels(images):
    cut = cutout(images, generator(), 4)
    assert torch.equal(cut[cut > 0], images[cut > 0])
    holes = (cut == 0).numpy()
    assert (holes[:, 0] == holes[:, 1]).all()
    for hole in holes[:, 0]:
        rows, columns = hole.any(1), hole.any(0)
        assert (hole == np.outer(rows, columns)).all()
        assert 2 <= rows.sum() <= 4 and 2 <= columns.sum() <= 4


def test_an_affine_map_of_nothing_changes_nothing(images):
    mapped = affine(images, generator(), 0.0, 0.0, 0.0, 0.0)
    torch.testing.assert_close(mapped, images.float() / 255, atol=1e-5, rtol=0)


def test_an_affine_map_of_some_images_leaves_the_others_as_they_are(images):
    mapped = affine(images, generator(), 20.0, share=0.5)
    same = [torch.equal(a, b) for a, b in zip(mapped, images.float() / 255, strict=True)]
    assert 10 <= sum(same) <= 30
    assert torch.equal(affine(images, generator(), 20.0, share=0.0), images.float() / 255)


def test_an_affine_map_moves_by_at_most_its_share():
    dot = torch.zeros(200, 1, 21, 21)
    dot[:, :, 10, 10] = 1
    mass = affine(dot, generator(), 0.0, 0.0, 0.2, 0.0)[:, 0]
    places = torch.arange(21.0) - 10
    for axis in (1, 2):
        shifts = (mass.sum(3 - axis) * places).sum(1) / mass.sum((1, 2))
        assert shifts.abs().max() <= 0.2 * 21 + 1e-3
        assert shifts.min() < -2 and shifts.max() > 2


def test_rotations_keep_what_lies_in_the_middle():
    disc = torch.zeros(20, 1, 21, 21)
    disc[:, :, 7:14, 7:14] = 1
    turned = affine(disc, generator(), 90.0, 0.0, 0.0)
    torch.testing.assert_close(turned.sum((1, 2, 3)), disc.sum((1, 2, 3)), atol=1.5, rtol=0)
    assert not torch.equal(turned[0], turned[1])


@pytest.mark.parametrize("name", ["crop", "flip", "cutout:3", "affine:20:0.2:0.1:5"])
def test_equal_generators_draw_equal_batches(images, name):
    (step,) = parse_steps([name])
    first, again, other = step(images, generator()), step(images, generator()), None
    other = step(images, generator(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape


@pytest.mark.parametrize("name", ["spin", "flip:1", "crop:two", "crop:-1", "affine:nan"])
def test_steps_that_cannot_be_are_refused(name):
    with pytest.raises(UsageError, match="augmentation"):
        parse_steps([name])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_targets_are_mixed_as_the_samples_are(mixup, cutmix):
    labels = torch.arange(6) % 3
    # Each image is filled with its label's one-hot code, so its mean is its share of classes.
    x = torch.nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(6, 3, 8, 8)
    for seed in range(20):
        mixed, targets = mix(x, labels, 3, generator(seed), mixup, cutmix)
        torch.testing.assert_close(mixed.mean((2, 3)), targets, atol=1e-5, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert (targets.max(1).values < 1).any()
