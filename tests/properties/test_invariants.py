"""Random networks, random recipes, the five invariants."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simam_inject.errors import RecipeError
from simam_inject.recipe import load_recipe
from tests.properties.blocks import BLOCKS
from tests.properties.invariants import check
from tests.properties.strategies import Design, designs, recipes

SLOW = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
}
EVERYTHING = {
    "version": 1,
    "rules": [
        {"block": "*", "before": "residual", "optional": True},
        {"path": "*", "after": {"op": "conv"}, "optional": True},
        {"path": "*", "after": {"op": "norm"}, "optional": True},
        {"block": "*", "after": "output", "optional": True},
    ],
}


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_kind_of_block_takes_attention_wherever_it_can(block):
    assert check(Design(2, (block,), False, False, "logits"), EVERYTHING) >= 2


@settings(max_examples=100, derandomize=True, **SLOW)
@given(designs, recipes())
def test_a_random_recipe_keeps_the_invariants_on_a_random_network(design, recipe):
    check(design, recipe)


@pytest.mark.long
@settings(max_examples=2000, **SLOW)
@given(designs, recipes())
def test_many_random_recipes_keep_the_invariants_on_random_networks(design, recipe):
    check(design, recipe)


_words = st.sampled_from(("version", "rules", "block", "after", "op", "path", "pattern", "where", "pick", "__import__"))
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, derandomize=True, **SLOW)
@given(st.dictionaries(_words, _json, max_size=4))
def test_a_recipe_from_outside_is_read_or_refused_and_never_anything_else(data):
    try:
        recipe = load_recipe(data)
    except RecipeError:
        return
    assert recipe.rules
