"""Records of a recipe cannot be changed, and selectors may be written in any case."""

import pytest

from simam_inject import Recipe, Rule
from simam_inject.errors import RecipeError
from simam_inject.recipe import load_recipe


def set_name(recipe):
    recipe.name = "x"


def set_block(recipe):
    recipe.rules[0].block = "Bottleneck"


def delete_name(recipe):
    del recipe.name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_name, "recipe: cannot set name, since a Recipe is frozen; make another one"),
        (set_block, "rule: cannot set block, since a Rule is frozen"),
        (delete_name, "recipe: cannot delete name"),
    ],
)
def test_a_recipe_is_frozen(change, told):
    with pytest.raises(RecipeError, match=told):
        change(Recipe(rules=[Rule(block="Block", after="a")]))


@pytest.mark.parametrize("text", ["AFTER Block.a", "After Block.a", "  after  Block.a "])
def test_a_selector_in_any_case(text):
    assert load_recipe(text) == load_recipe("after Block.a")
