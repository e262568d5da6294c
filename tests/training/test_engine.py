"""Whole runs on small data: what they write, and that a cut one ends like one that was not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.models.recipes import find_recipe
from tbn_tvm.training.data.mnist import load_digits
from tbn_tvm.training.engine import Options, run

TINY = find_recipe("mnist-mlp").with_settings(
    {"sizes.widths": (784, 32, 10), "min_size": 1000, "epochs": 3, "batch_size": 50}
)
POLISHED = replace(TINY, polish_sweeps=2, batch_size=20, learning_rate=0.01)
PLAIN = replace(TINY, polish_sweeps=0)
AVERAGED = replace(
    PLAIN, ema=0.9, validation=0.2, select="best", sizes={**TINY.sizes, "norm": True}
)
AUGMENTED = PLAIN.with_settings(
    {
        "augment": "crop:2,flip,affine",
        "mixup": 0.2,
        "cutmix": 1,
        "optimiser": "sgd",
        "clip_norm": 1,
        "warmup_epochs": 1,
        "label_smoothing": 0.1,
    }
)


class Interrupted(Exception):
    """Stands for a power cut."""


def weights(path):
    """What an exported model holds."""
    return tbn_tvm.load_model(path).state_dict


def assert_same(first, second):
    """Bit-identical weights."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_a_run_ends_with_a_model_that_compiles_and_a_log_that_tells_its_accuracy(digits, tmp_path):
    model, log = tmp_path / "model.pt2", tmp_path / "log.json"
    result = run(POLISHED, digits, model, Options(log=log))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.json", "model.pt2"]
    assert json.loads(log.read_text()) == result.log
    steps = result.log["steps"]
    assert [row["phase"] for row in steps][:4] == ["epoch"] * 3 + ["sweep"]
    assert result.log["recipe"]["sizes"]["widths"] == [784, 32, 10]
    assert result.log["samples"] == {"train": 120, "test": 40}
    test = load_digits(digits)
    scores = tbn_tvm.compile(model).run(test.test_images.numpy())
    accuracy = (scores.argmax(1) == test.test_labels.numpy()).mean()
    assert accuracy == steps[-1]["test"]["accuracy"] == result.log["result"]["accuracy"] > 0.9


@pytest.mark.parametrize("twin", [False, True], ids=["tiled", "float"])
@pytest.mark.parametrize("recipe", [POLISHED, AVERAGED, AUGMENTED], ids=["polish", "ema", "mix"])
def test_a_run_cut_after_every_epoch_and_sweep_ends_the_same(digits, tmp_path, recipe, twin):
    options = Options(twin=twin)
    whole = run(recipe, digits, tmp_path / "whole.pt2", options)
    assert whole.log["steps"][2]["loss"] < whole.log["steps"][0]["loss"]

    def interrupt(progress) -> None:
        if progress.row is not None:
            raise Interrupted

    cut = tmp_path / "cut.pt2"
    for _ in range(sum(row["phase"] != "chosen" for row in whole.log["steps"])):
        with pytest.raises(Interrupted):
            run(recipe, digits, cut, options, interrupt)
        assert not cut.exists()
    result = run(recipe, digits, cut, options)
    assert result.log["steps"] == whole.log["steps"]
    assert_same(weights(tmp_path / "whole.pt2"), weights(cut))


@pytest.mark.parametrize(
    "recipe", [AUGMENTED, replace(AVERAGED, batch_size=30)], ids=["mix", "ema"]
)
def test_a_run_that_its_time_limit_stops_after_every_step_ends_the_same(digits, tmp_path, recipe):
    whole = run(recipe, digits, tmp_path / "whole.pt2")
    cut, calls = tmp_path / "cut.pt2", 0
    while not (result := run(recipe, digits, cut, Options(time_limit=1e-9))).finished:
        calls += 1
        assert not cut.exists()
    assert calls >= 6
    assert result.log["steps"] == whole.log["steps"]
    assert_same(weights(tmp_path / "whole.pt2"), weights(cut))


def test_the_float_twin_has_the_same_names_and_float_weights(digits, tmp_path):
    run(replace(PLAIN, epochs=1), digits, tmp_path / "twin.pt2", Options(twin=True))
    found = {
        name: (str(x.dtype), tuple(x.shape)) for name, x in weights(tmp_path / "twin.pt2").items()
    }
    assert found == {
        "0.weight": ("torch.float32", (32, 784)),
        "2.weight": ("torch.float32", (10, 32)),
    }


def test_a_tiled_run_starts_from_its_float_twin_and_learns_from_it(digits, tmp_path):
    twin = tmp_path / "twin.pt2"
    run(PLAIN, digits, twin, Options(twin=True))
    taught = replace(PLAIN, init=str(twin), teacher=str(twin), distill=0.7, epochs=1)
    result = run(taught, digits, tmp_path / "taught.pt2")
    scratch = run(replace(PLAIN, epochs=1), digits, tmp_path / "scratch.pt2")
    # Cross entropy with and without the teacher differ; accuracy on this easy set tells the start.
    assert result.log["result"]["accuracy"] >= scratch.log["result"]["accuracy"]
    assert result.log["steps"][0]["loss"] != scratch.log["steps"][0]["loss"]


def test_seeds_decide_the_weights(digits, tmp_path):
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run(replace(PLAIN, epochs=1, seed=seed), digits, tmp_path / f"{name}.pt2")
    first, again, other = (weights(tmp_path / f"{n}.pt2") for n in ("first", "again", "other"))
    assert_same(first, again)
    assert not torch.equal(first["0.tile"], other["0.tile"])


def test_plain_epochs_are_neither_augmented_nor_mixed(digits, tmp_path):
    settings = {"epochs": 1, "augment": "crop:2", "mixup": 0.2}
    for name, changes in (
        ("plain", {"epochs": 1}),
        ("last", {**settings, "plain_epochs": 1}),
        ("mixed", settings),
    ):
        run(PLAIN.with_settings(changes), digits, tmp_path / f"{name}.pt2")
    plain, last, mixed = (weights(tmp_path / f"{n}.pt2") for n in ("plain", "last", "mixed"))
    assert_same(plain, last)
    assert not torch.equal(plain["0.tile"], mixed["0.tile"])


def test_the_best_epoch_is_chosen_by_validation(digits, tmp_path):
    # A rate that ruins the model after a good first epoch.
    recipe = replace(AVERAGED, ema=0.0, learning_rate=0.02, epochs=4, schedule="constant")
    result = run(recipe, digits, tmp_path / "model.pt2")
    *epochs, chosen = result.log["steps"]
    found = [row["validation"]["accuracy"] for row in epochs]
    assert chosen["phase"] == "chosen"
    assert chosen["epoch"] == 1 + int(np.argmax(found))
    assert chosen["test"] == epochs[chosen["epoch"] - 1]["test"]
    images, labels = load_digits(digits).test_images, load_digits(digits).test_labels
    program = tbn_tvm.load_model(tmp_path / "model.pt2").module()
    accuracy = float((program(images).argmax(1) == labels).double().mean())
    assert accuracy == chosen["test"]["accuracy"]


# -- refused ---------------------------------------------------------------------------------


def stop(_progress) -> None:
    raise Interrupted


@pytest.fixture
def begun(digits, tmp_path):
    """An output whose run was cut after its first epoch."""

    def cut(progress) -> None:
        if progress.row is not None:
            raise Interrupted

    output = tmp_path / "model.pt2"
    with pytest.raises(Interrupted):
        run(PLAIN, digits, output, Options(), cut)
    return output


def test_a_run_with_other_settings_is_not_resumed(digits, begun):
    checkpoint = begun.with_name("model.pt2.checkpoint")
    kept = checkpoint.read_bytes()
    with pytest.raises(UsageError, match=r"other settings \(seed, float\); give the same"):
        run(replace(PLAIN, seed=2), digits, begun, Options(twin=True))
    assert checkpoint.read_bytes() == kept
    assert run(PLAIN, digits, begun).finished


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None], ids=["empty", "text", "half"])
def test_a_damaged_checkpoint_is_refused(digits, begun, damage):
    checkpoint = begun.with_name("model.pt2.checkpoint")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(TbnError, match="not a checkpoint of this recipe, or damaged"):
        run(PLAIN, digits, begun)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_line(digits, tmp_path):
    output = tmp_path / "model.pt2"
    # As a full disk does, a folder in the way makes the write fail.
    (tmp_path / "model.pt2.checkpoint.partial").mkdir()
    with pytest.raises(TbnError, match=r"checkpoint: the checkpoint cannot be written: [^\n]+$"):
        run(PLAIN, digits, output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"p": 3}, r"p = 3 does not divide the 25,088 weights of 0; the largest divisor below"),
        ({"select": "best"}, "select best: needs a validation split"),
        ({"augment": "turn"}, "unknown augmentation 'turn': expected one of crop"),
        ({"augment": "crop:x"}, "augmentation 'crop:x': expected crop:PADDING, with numbers"),
        ({"validation": 0.001}, "validation 0.001: 0 of 120 training samples"),
        ({"model": "mlp"}, "unknown model 'mlp'"),
        ({"model": "mnist-cnn", "sizes.depth": 3}, "model mnist-cnn: .*(depth|widths)"),
        ({"sizes.widths": (784, 32, 9)}, r"gives \(9,\) for a sample of mnist, expected \(10,\)"),
        ({"sizes.widths": (700, 32, 10)}, r"does not take samples of mnist, \(784,\): "),
        ({"task": "forecasting"}, r"gives \(10,\) .* expected \(\) for forecasting; see sizes"),
        ({"data": "digits"}, "unknown data set 'digits'"),
        ({"data_options.length": 3}, "data set mnist: .*length"),
    ],
)
def test_settings_that_cannot_be_are_refused(digits, tmp_path, settings, told):
    with pytest.raises(UsageError, match=told):
        run(PLAIN.with_settings(settings), digits, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
