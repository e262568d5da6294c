"""Recipes: settings from a command line, and those that no run can have."""

import json
from dataclasses import fields

import pytest

from tbn_tvm.errors import UsageError
from tbn_tvm.training.recipe import Recipe

BASE = Recipe(name="base", model="mnist-mlp", data="mnist", sizes={"widths": (784, 10)})


def test_settings_are_read_as_their_field_has_them():
    changed = BASE.with_settings(
        {
            "epochs": "7",
            "learning_rate": "1e-2",
            "augment": "crop:4,flip",
            "skip": "",
            "schedule": "step",
            "sizes.widths": "[784, 16, 10]",
            "sizes.kind": "plain",
            "data_options.length": "96",
            "seed": None,
        }
    )
    assert (changed.epochs, changed.learning_rate, changed.schedule) == (7, 0.01, "step")
    assert (changed.augment, changed.skip) == (("crop:4", "flip"), ())
    assert changed.sizes == {"widths": [784, 16, 10], "kind": "plain"}
    assert changed.data_options == {"length": 96}
    assert (changed.seed, changed.name) == (BASE.seed, "base")
    assert BASE.sizes == {"widths": (784, 10)}


def test_every_field_but_the_name_can_be_set_to_what_it_is():
    for field in fields(BASE):
        if field.name in ("name", "about", "tuning", "sizes", "data_options"):
            continue
        value = getattr(BASE, field.name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        assert BASE.with_settings({field.name: text}) == BASE


def test_a_recipe_survives_json():
    assert json.loads(json.dumps(BASE.to_dict())) == BASE.to_dict()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("epochs", "0", "epochs 0: expected a number at least 1"),
        ("epochs", "1.5", "epochs '1.5': expected an integer"),
        ("learning_rate", "nan", "learning rate nan: expected a number above 0"),
        ("learning_rate", "inf", "learning rate inf"),
        ("momentum", "2", "momentum 2.0: expected a number at least 0, at most 1"),
        ("ema", "1", "expected a decay below 1"),
        ("validation", "0.95", "validation 0.95: expected a number at least 0, at most 0.9"),
        ("task", "regression", "task 'regression': expected one of classification"),
        ("distill", "0.5", "needs a teacher"),
        ("name", "other", "unknown setting 'name'"),
        ("sizes", "{}", "unknown setting 'sizes'"),
        ("optimizer", "sgd", "unknown setting 'optimizer': expected one of model, data"),
    ],
)
def test_what_no_run_can_have_is_refused(key, value, told):
    with pytest.raises(UsageError, match=told.replace("(", r"\(")):
        BASE.with_settings({key: value})


def test_mixing_is_for_classes():
    with pytest.raises(UsageError, match="mixup and cutmix mix classes: not for forecasting"):
        BASE.with_settings({"task": "forecasting", "mixup": 0.2})
