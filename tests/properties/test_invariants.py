"""Random networks, random recipes, and changes after injection: the invariants, and a hook oracle."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from simam_inject import InjectError, bypass, eject, inject, injected
from tests.oracle import E_LAMBDA, distance, hooked, same_bits
from tests.properties import flipping
from tests.properties.blocks import BLOCKS
from tests.properties.invariants import check
from tests.properties.strategies import Design, designs, recipes

SLOW = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
}
QUICK = {**SLOW, "derandomize": True, "phases": (Phase.explicit, Phase.generate)}
"""A failure of the default run is shown as found: shrinking it takes minutes."""
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


@settings(max_examples=12, **QUICK)
@given(designs, recipes())
def test_a_random_recipe_keeps_the_invariants_on_a_random_network(design, recipe):
    check(design, recipe)


@pytest.mark.long
@settings(max_examples=1000, **SLOW)
@given(designs, recipes())
def test_many_random_recipes_keep_the_invariants_on_random_networks(design, recipe):
    check(design, recipe)


def run(model, shape, seed):
    x = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(x)


def assert_like_hooks(stock, model, places, shape, seed):
    """The injected model is the stock one with hooks, and bypassed the stock one, side effects included."""
    twins = [copy.deepcopy(stock) for _ in range(2)]
    plain = run(twins[0], shape, seed)
    with hooked(twins[1], places):
        expected = run(twins[1], shape, seed)
    other = copy.deepcopy(model)
    with bypass(other):
        assert same_bits(run(other, shape, seed), plain)
    assert [unit.seen for unit in other.units] == [unit.seen for unit in twins[0].units]
    assert distance(run(model, shape, seed), expected) < 1e-8
    assert all(map(torch.allclose, model.state_dict().values(), twins[1].state_dict().values()))
    stock.load_state_dict(model.state_dict())
    for ours, theirs in zip(model.units, stock.units, strict=True):
        theirs.seen = list(ours.seen)
    return distance(expected, plain)


def check_changes(design, rule, script):
    """Inject; then change, run and compare, again and again; then eject."""
    flipping.SETTINGS["power"] = 1.0
    stock = design.build()
    recipe = {"e_lambda": E_LAMBDA, "rules": [rule]}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = copy.deepcopy(stock)
    try:
        inject(model, recipe, example_inputs=x, verify=len(script) > 4)
    except InjectError:
        return
    places = [insertion.path for insertion in injected(model)]
    assert set(places) <= set(dict(stock.named_modules()))
    assert assert_like_hooks(stock, model, places, (2, 8, 8), 1) > 1e-6
    for step, (change, shape) in enumerate(script):
        probe = copy.deepcopy(model)
        if change.apply(probe):
            change.apply(stock)
            change.apply(model)
        assert_like_hooks(stock, model, places, shape, step)
    eject(model)
    assert same_bits(run(model, (2, 9, 7), 5), run(copy.deepcopy(stock), (2, 9, 7), 5))
    flipping.SETTINGS["power"] = 1.0


scripts = st.lists(st.tuples(flipping.changes, flipping.shapes), min_size=2, max_size=6)


@settings(max_examples=28, **QUICK)
@given(flipping.designs, flipping.rules, scripts)
def test_whatever_changes_afterwards_the_output_is_that_of_the_hooked_network(design, rule, script):
    check_changes(design, rule, script)


@pytest.mark.long
@settings(max_examples=2000, **SLOW)
@given(flipping.designs, flipping.rules, scripts)
def test_two_thousand_networks_that_change_afterwards(design, rule, script):
    check_changes(design, rule, script)
