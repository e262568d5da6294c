"""Learning rates along a run, and which parameters decay."""

import math

import pytest
import torch
from torch import nn

from tbn_tvm.nn import TiledConv2d, TiledLinear
from tbn_tvm.training.optim import make_optimiser, rate_at, set_rate
from tbn_tvm.training.recipe import Recipe


def recipe(**settings) -> Recipe:
    """Ten epochs at a rate of 2."""
    fields = {"name": "x", "model": "m", "data": "d", "epochs": 10, "learning_rate": 2.0}
    return Recipe(**{**fields, **settings})


def test_a_cosine_with_warm_up():
    chosen = recipe(warmup_epochs=2, final_rate=0.1)
    assert [rate_at(chosen, t) for t in (0, 1, 2)] == [0, 1, 2]
    assert rate_at(chosen, 6) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert rate_at(chosen, 4) == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(math.pi / 4))))
    assert rate_at(chosen, 10) == pytest.approx(0.2)


def test_steps_and_a_constant():
    stepped = recipe(schedule="step", step_epochs=4, step_factor=0.75)
    assert [rate_at(stepped, t) for t in (0, 3.99, 4, 8)] == [2, 2, 1.5, 1.125]
    assert {rate_at(recipe(schedule="constant"), t / 7) for t in range(70)} == {2.0}


def test_warm_up_as_long_as_the_run():
    assert rate_at(recipe(warmup_epochs=10), 5) == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adadelta"])
def test_only_weights_of_layers_decay(name):
    model = nn.Sequential(
        TiledConv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        TiledLinear(4, 4),
        nn.Embedding(4, 4),
        nn.Linear(4, 2),
    )
    optimiser = make_optimiser(model, recipe(optimiser=name, weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    found = {n: decay[id(p)] for n, p in model.named_parameters()}
    decaying = {n for n, value in found.items() if value}
    expected = {f"{layer}.{w}" for layer in (0, 3) for w in ("scores", "magnitudes")}
    assert decaying == expected | {"5.weight"}
    assert set(found.values()) == {0.0, 0.3}
    assert len(found) == len(list(model.parameters()))


def test_magnitudes_have_a_rate_of_their_own():
    model = nn.Sequential(TiledLinear(4, 4), nn.Linear(4, 2))
    optimiser = make_optimiser(model, recipe(magnitude_rate=0.25))
    set_rate(optimiser, 0.1)
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    found = {n: rates[id(p)] for n, p in model.named_parameters()}
    assert found.pop("0.magnitudes") == 0.025
    assert set(found.values()) == {0.1} and len(found) == 4


def test_an_optimiser_without_decaying_weights():
    optimiser = make_optimiser(nn.BatchNorm1d(3), recipe())
    assert [len(group["params"]) for group in optimiser.param_groups] == [2]
    assert all(torch.is_tensor(p) for group in optimiser.param_groups for p in group["params"])
