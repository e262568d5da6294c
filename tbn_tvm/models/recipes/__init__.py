"""Training recipes: which model, which data, which optimisation. One module a family.

Nothing heavy is imported here: the command line lists recipes without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tbn_tvm.errors import UsageError
from tbn_tvm.models.recipes import cifar, clouds, etth1, imagenet, mnist
from tbn_tvm.training.recipe import Recipe

_FAMILIES = (mnist, cifar, imagenet, etth1, clouds)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for family in _FAMILIES for recipe in family.RECIPES}
)
"""All recipes, by name."""


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises
    ------
    UsageError
        Where there is none, with all there are.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
