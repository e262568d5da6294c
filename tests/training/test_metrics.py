"""Metrics against their definitions in NumPy, batches and processes added up."""

import numpy as np
import pytest
import torch

from tbn_tvm.training.metrics import Accuracy, ForecastError, Overlap

CPU = torch.device("cpu")


def random(*shape):
    """Standard normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_accuracy_of_first_and_of_five():
    logits, labels = random(300, 100), torch.arange(300) % 100
    metric = Accuracy(100, CPU)
    for part in (slice(0, 200), slice(200, 300)):
        metric.add(logits[part], labels[part])
    ranked = np.argsort(-logits.numpy(), 1)
    found = metric.result()
    assert found["accuracy"] == (ranked[:, 0] == labels.numpy()).mean()
    assert found["accuracy_5"] == (ranked[:, :5] == labels.numpy()[:, None]).any(1).mean()
    chances = np.exp(logits.double().numpy())
    chances /= chances.sum(1, keepdims=True)
    assert found["loss"] == pytest.approx(-np.log(chances[range(300), labels]).mean(), rel=1e-5)


def test_intersection_over_union_of_classes():
    outputs, truth = random(4, 3, 50), torch.arange(200).reshape(4, 50) % 2  # class 2 never true
    metric = Overlap(3, {}, CPU)
    metric.add(outputs[:1], truth[:1])
    other = Overlap(3, {}, CPU)
    other.add(outputs[1:], truth[1:])
    metric.sums += other.sums
    guess = outputs.argmax(1)
    shares = [
        ((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in range(3)
    ]
    assert metric.result()["mean_iou"] == pytest.approx(float(np.mean(shares)))
    assert metric.result()["accuracy"] == float((guess == truth).double().mean())


def test_intersection_over_union_of_shapes_looks_at_their_categorys_parts_alone():
    # Two shapes of categories with parts (0, 1) and (2, 3, 4); 4 points each.
    parts = {0: (0, 1), 1: (2, 3, 4)}
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    guess = torch.tensor([[0, 1, 1, 1], [2, 2, 2, 3]])
    outputs = torch.nn.functional.one_hot(guess, 5).float().transpose(1, 2)
    outputs[0, 4] = 9  # a part of another category scores best, and does not count
    metric = Overlap(5, parts, CPU)
    metric.add(outputs, truth)
    first = (1 / 2 + 2 / 3) / 2
    second = (3 / 4 + 0 + 1) / 3  # neither has part 4
    assert metric.result()["mean_iou"] == pytest.approx((first + second) / 2)
    assert metric.result()["accuracy"] == 6 / 8


def test_errors_of_forecasts():
    outputs, targets = random(6, 4, 2), random(6, 2, 4).transpose(1, 2)
    metric = ForecastError(CPU)
    metric.add(outputs[:4], targets[:4])
    metric.add(outputs[4:], targets[4:])
    error = (outputs - targets).double().numpy()
    assert metric.result() == pytest.approx(
        {"mse": (error**2).mean(), "mae": np.abs(error).mean()}, rel=1e-6
    )
