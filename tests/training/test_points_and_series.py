"""Whole runs on clouds of points and on series: an easy task is learnt, and the model exported."""

import json

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.models.recipes import find_recipe
from tbn_tvm.models.registry import find_model
from tbn_tvm.training.engine import Options, run
from tbn_tvm.training.recipe import Recipe


def small(name: str) -> dict:
    """An architecture at its small sizes, as settings of a recipe."""
    model = find_model(name).reduced()
    return {"model": name, "sizes": dict(model.sizes), "min_size": model.min_size}


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """Two hundred hours of seven sines of a day."""
    folder, random = tmp_path_factory.mktemp("waves"), np.random.default_rng(0)
    hours = np.arange(200)[:, None]
    values = np.sin(2 * np.pi * (hours / 24 + random.random(7))) + random.normal(0, 0.05, (200, 7))
    rows = [",".join(f"{v:.4f}" for v in row) for row in values]
    (folder / "waves.csv").write_text("\n".join(["a,b,c,d,e,f,g", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Flat and long clouds as ModelNet's text files."""
    folder, random = tmp_path_factory.mktemp("shapes"), np.random.default_rng(1)
    (folder / "modelnet40_shape_names.txt").write_text("plate\npole\n")
    for split, count in (("train", 24), ("test", 8)):
        names = []
        for number in range(count):
            kind, size = (("plate", (1, 0.05, 1)), ("pole", (0.05, 1, 0.05)))[number % 2]
            names.append(f"{kind}_{split}{number}")
            cloud = np.concatenate([random.normal(0, size, (24, 3)), np.zeros((24, 3))], 1)
            (folder / kind).mkdir(exist_ok=True)
            path = folder / kind / f"{kind}_{split}{number}.txt"
            np.savetxt(path, cloud, fmt="%.4f", delimiter=",")
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(names))
    return folder


@pytest.fixture(scope="module")
def mugs(tmp_path_factory):
    """Mugs whose handle lies to one side, as ShapeNet's part annotations."""
    folder, random = tmp_path_factory.mktemp("mugs"), np.random.default_rng(2)
    (folder / "synsetoffset2category.txt").write_text("Mug\t038\n")
    (folder / "train_test_split").mkdir()
    (folder / "038").mkdir()
    for split, count in (("train", 48), ("val", 4), ("test", 4)):
        names = [f"{split}{number}" for number in range(count)]
        for name in names:
            table = np.zeros((32, 7))
            table[:, :3] = random.uniform(-1, 1, (32, 3))
            table[:, 6] = np.where(table[:, 0] > 0.5, 36, 37)
            np.savetxt(folder / "038" / f"{name}.txt", table, fmt="%.4f")
        listing = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
        listing.write_text(json.dumps([f"shape_data/038/{name}" for name in names]))
    return folder


@pytest.mark.parametrize("name", ["etth1-tsmixer", "etth1-transformer"])
@pytest.mark.parametrize("twin", [False, True], ids=["tiled", "float"])
def test_a_forecast_of_waves_is_learnt_and_the_best_epoch_exported(waves, tmp_path, name, twin):
    recipe = find_recipe(name).with_settings(
        {"data": "csv", "data_options.length": 24, "data_options.horizon": 12, "epochs": 6}
    )
    architecture = find_model(recipe.model).reduced()
    sizes = {f"sizes.{key}": value for key, value in architecture.sizes.items()}
    options = {"learning_rate": 0.01, "batch_size": 16, "ema": 0, "min_size": 256}
    recipe = recipe.with_settings({**sizes, **options})
    result = run(recipe, waves, tmp_path / "model.pt2", Options(twin=twin))
    *epochs, chosen = result.log["steps"]
    errors = [row["validation"]["mse"] for row in epochs]
    assert chosen["epoch"] == 1 + int(np.argmin(errors))
    # Values are standardised: their mean as the forecast is off by 1.
    assert errors[chosen["epoch"] - 1] < 0.7
    assert set(result.log["result"]) == {"mse", "mae"}
    forecast = tbn_tvm.load_model(tmp_path / "model.pt2").module()(torch.randn(3, 24, 7))
    assert forecast.shape == (3, 12, 7)


def test_shapes_are_told_apart_with_augmentation_and_the_penalty(shapes, tmp_path):
    settings = small("pointnet")
    settings["sizes"] |= {"classes": 2}
    recipe = Recipe(
        "shapes",
        data="modelnet40",
        data_options={"points": 16},
        epochs=24,
        batch_size=4,
        learning_rate=0.01,
        augment=("rotate", "jitter", "resize", "drop:0.3"),
        penalty=0.001,
        start="model",
        **settings,
    )
    result = run(recipe, shapes, tmp_path / "model.pt2")
    first, *_, last = result.log["steps"]
    assert last["loss"] < 0.6 * first["loss"]
    other = run(recipe.with_settings({"penalty": 10, "epochs": 1}), shapes, tmp_path / "other.pt2")
    assert other.log["steps"][0]["loss"] > 2 * first["loss"]


def test_parts_are_segmented_by_the_overlap_of_each_shape(mugs, tmp_path):
    settings = small("pointnet-part")
    settings["sizes"] |= {"classes": 50, "categories": 16}
    recipe = Recipe(
        "parts",
        data="shapenet-part",
        data_options={"points": 24},
        task="segmentation",
        epochs=30,
        batch_size=3,
        learning_rate=0.003,
        select="best",
        start="model",
        **settings,
    )
    result = run(recipe, mugs, tmp_path / "model.pt2")
    assert result.log["result"]["mean_iou"] > 0.5
    program = tbn_tvm.load_model(tmp_path / "model.pt2").module()
    assert program(torch.randn(2, 3, 24), torch.eye(16)[:2]).shape == (2, 50, 24)
