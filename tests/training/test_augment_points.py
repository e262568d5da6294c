"""Augmentation of points: what each step may change, and what it must not."""

import pytest
import torch

from tbn_tvm.errors import UsageError
from tbn_tvm.training.augment import parse_steps
from tbn_tvm.training.augment_points import drop, jitter, resize, rotate
from tbn_tvm.training.recipe import Recipe


def generator(seed: int = 0) -> torch.Generator:
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clouds():
    """Forty clouds of 25 points with normals."""
    return torch.randn(40, 6, 25, generator=generator(1))


@pytest.mark.parametrize("up", [0, 1, 2])
def test_rotations_keep_heights_and_all_distances(clouds, up):
    turned = rotate(clouds, generator(), up)
    torch.testing.assert_close(turned[:, up], clouds[:, up])
    torch.testing.assert_close(turned[:, up + 3], clouds[:, up + 3])
    for first in (0, 3):
        before, after = (x[:, first : first + 3].transpose(1, 2) for x in (clouds, turned))
        torch.testing.assert_close(after @ after.mT, before @ before.mT, atol=1e-4, rtol=1e-4)
    # One angle a cloud, the same for coordinates and normals, anywhere on the circle.
    a, b = (up + 1) % 3, (up + 2) % 3
    angles = [
        torch.atan2(turned[:, f + b], turned[:, f + a])
        - torch.atan2(clouds[:, f + b], clouds[:, f + a])
        for f in (0, 3)
    ]
    angles = torch.cat(angles, 1) % (2 * torch.pi)
    torch.testing.assert_close(
        angles.cos(), angles[:, :1].cos().expand_as(angles), atol=1e-4, rtol=0
    )
    assert angles[:, 0].min() < 1 and angles[:, 0].max() > 5


def test_features_that_are_no_normals_stay(clouds):
    nine = torch.cat([clouds, clouds[:, :3]], 1)
    for step in parse_steps(["rotate:2", "jitter", "resize"]):
        assert torch.equal(step(nine, generator())[:, 3:], nine[:, 3:])


def test_jitter_stays_within_its_limit(clouds):
    moves = jitter(clouds, generator(), 0.02, 0.03) - clouds
    assert moves[:, :3].abs().max() <= 0.03 + 1e-6
    assert 0.01 < moves[:, :3].std() < 0.02
    assert not moves[:, 3:].any()


def test_a_cloud_is_scaled_by_one_factor(clouds):
    factors = resize(clouds, generator(), 0.5, 2.0)[:, :3] / clouds[:, :3]
    torch.testing.assert_close(factors, factors[:, :1, :1].expand_as(factors))
    assert 0.5 <= factors.min() < 0.8 and 1.7 < factors.max() <= 2.0


def test_lost_points_become_the_first(clouds):
    kept = drop(clouds, generator(), 0.5)
    same = (kept == clouds).all(1)
    first = (kept == clouds[:, :, :1]).all(1)
    assert (same | first).all()
    assert 0.6 < same.float().mean() < 0.9


def test_equal_generators_draw_equal_clouds(clouds):
    for step in parse_steps(["rotate", "jitter:0.1:0.2", "resize:0.5:1", "drop:0.3"]):
        assert torch.equal(step(clouds, generator()), step(clouds, generator()))
        assert not torch.equal(step(clouds, generator()), step(clouds, generator(1)))


def test_what_cannot_be_is_refused(clouds):
    (step,) = parse_steps(["rotate:3"])
    with pytest.raises(UsageError, match="rotate:3: expected axis 0, 1 or 2"):
        step(clouds, generator())
    with pytest.raises(UsageError, match="drop: points' targets would not follow"):
        Recipe("parts", "pointnet-part", "shapenet-part", task="segmentation", augment=("drop",))
