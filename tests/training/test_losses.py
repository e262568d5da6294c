"""Losses against their definitions in NumPy, float64."""

import numpy as np
import pytest
import torch

from tbn_tvm.training.losses import distillation_loss, task_loss
from tbn_tvm.training.recipe import Recipe


def recipe(**settings) -> Recipe:
    """Nothing but what is set."""
    return Recipe(name="x", model="m", data="d", **settings)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Along axis 1."""
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.fixture
def logits():
    """Two batches (6, 5, 4) of standard normal values."""
    return torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))


def test_cross_entropy_with_smoothing(logits):
    x, labels = logits[0, :, :, 0], torch.arange(6) % 5
    found = task_loss(x, labels, recipe(label_smoothing=0.2))
    target = 0.8 * np.eye(5)[labels] + 0.2 / 5
    expected = -(target * log_softmax(x.double().numpy())).sum(1).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_points(logits):
    labels = torch.arange(24).reshape(6, 4) % 5
    found = task_loss(logits[0], labels, recipe(task="segmentation"))
    chances = log_softmax(logits[0].double().numpy())
    expected = -np.take_along_axis(chances, labels.numpy()[:, None], 1).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_squared_error(logits):
    found = task_loss(logits[0], logits[1], recipe(task="forecasting"))
    expected = ((logits[0] - logits[1]).double().numpy() ** 2).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    same = distillation_loss(logits[0], logits[1], recipe(task="forecasting"))
    assert float(same) == float(found)


@pytest.mark.parametrize("points", [False, True])
def test_the_distance_to_a_teacher(logits, points):
    student, teacher = logits if points else logits[..., 0]
    found = distillation_loss(student, teacher, recipe(temperature=3))
    mine, taught = (log_softmax(x.double().numpy() / 3) for x in (student, teacher))
    expected = 9 * (np.exp(taught) * (taught - mine)).sum(1).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(teacher, teacher, recipe())) == pytest.approx(0, abs=1e-6)
