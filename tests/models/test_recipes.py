"""Every recipe names what exists, and trains its architecture at a size that takes no time."""

import pytest

from tbn_tvm.models.recipes import RECIPES
from tbn_tvm.models.registry import MODELS
from tbn_tvm.training.augment import parse_steps
from tbn_tvm.training.data import READERS
from tbn_tvm.training.polish import find_polish


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_names_what_exists(recipe):
    assert recipe.model in MODELS
    assert recipe.data in READERS
    assert recipe.about
    parse_steps(recipe.augment)
    assert not recipe.polish or callable(find_polish(recipe.polish))
    assert recipe.warmup_epochs < recipe.epochs


def test_names_are_of_one_form():
    for name, recipe in RECIPES.items():
        assert name.startswith(recipe.data + "-") and name == name.lower()
