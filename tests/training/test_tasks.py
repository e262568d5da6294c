"""Segmentation through the engine: the figures that it reports are those of what it exports."""

import sys
import types

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.models.recipes import find_recipe
from tbn_tvm.models.registry import find_model
from tbn_tvm.training import data as readers
from tbn_tvm.training.data import DataSet, TensorSplit
from tbn_tvm.training.engine import run


def clouds(count: int, features: int, random: torch.Generator) -> tuple:
    """Points ``(N, features, 16)``; each belongs to what lies above the ground or below."""
    points = torch.rand(count, features, 16, generator=random) - 0.5
    return points, (points[:, 2] > 0).long()


def semantic(count: int, random: torch.Generator) -> TensorSplit:
    """Two classes of points."""
    points, sides = clouds(count, 9, random)
    return TensorSplit((points,), sides)


def parts(count: int, random: torch.Generator) -> TensorSplit:
    """Four categories of shapes; the first has parts 0 and 1, the others 2 and 3."""
    points, sides = clouds(count, 3, random)
    kind = torch.arange(count) % 4
    labels = torch.where(kind[:, None] == 0, sides, 2 + sides)
    return TensorSplit((points, torch.nn.functional.one_hot(kind, 4).float()), labels)


CASES = {
    "s3dis-pointnet": (semantic, DataSet(None, None, classes=13)),
    "shapenet-part-pointnet": (
        parts,
        DataSet(None, None, classes=6, parts={0: (0, 1), 1: (2, 3, 4)}),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_segmentation_is_learnt_and_reported_as_exported(tmp_path, monkeypatch, name):
    make, kind = CASES[name]
    random = torch.Generator().manual_seed(0)
    splits = {split: make(count, random) for split, count in (("train", 96), ("test", 32))}
    held_out = make(32, random)
    reader = types.ModuleType("synthetic_reader")
    reader.load = lambda _folder: DataSet(
        **splits, validation=held_out, classes=kind.classes, parts=kind.parts
    )
    monkeypatch.setitem(sys.modules, "synthetic_reader", reader)
    monkeypatch.setitem(readers.READERS, "synthetic", "synthetic_reader")
    recipe = find_recipe(name)
    small = find_model(recipe.model).reduced()
    recipe = recipe.with_settings(
        {
            "data": "synthetic",
            "min_size": small.min_size,
            "epochs": 8,
            "batch_size": 16,
            "learning_rate": 0.01,
            "ema": 0,
            **{f"sizes.{k}": v for k, v in small.sizes.items()},
        }
    )
    result = run(recipe, tmp_path, tmp_path / "model.pt2")
    epochs = [row for row in result.log["steps"] if row["phase"] == "epoch"]
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert set(epochs[0]["test"]) == set(epochs[0]["validation"]) == set(result.log["result"])
    with torch.no_grad():
        outputs = tbn_tvm.load_model(tmp_path / "model.pt2").module()(*splits["test"].inputs)
    targets, found = splits["test"].targets.numpy(), result.log["result"]
    if not kind.parts:
        share = (outputs.argmax(1).numpy() == targets).mean()
        assert share == pytest.approx(found["accuracy"], abs=0.01)
    else:
        expected = shape_overlap(outputs.numpy(), targets, kind.parts.values())
        assert found["mean_iou"] == pytest.approx(expected, abs=0.02)


def shape_overlap(outputs, targets, categories) -> float:
    """Mean over shapes of the mean intersection over union of their category's parts."""
    shares = []
    for scores, truth in zip(outputs, targets, strict=True):
        (parts,) = (p for p in categories if truth[0] in p)
        guess = np.array(parts)[scores[list(parts)].argmax(0)]
        overlap = [((guess == p) & (truth == p)).sum() for p in parts]
        union = [((guess == p) | (truth == p)).sum() for p in parts]
        shares.append(np.mean([o / u if u else 1 for o, u in zip(overlap, union, strict=True)]))
    return float(np.mean(shares))
