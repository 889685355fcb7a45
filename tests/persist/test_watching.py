"""Weights that were trained with SimAM and meet a model without it."""

import copy
import warnings

import pytest
import torch
from torch import nn

from simam_inject import eject, inject
from simam_inject.persist import LostRecipeWarning, unwatch, watch
from tests.persist.networks import EXAMPLE, RECIPE, net


def attended(seed, **rule):
    rules = [{**RECIPE["rules"][0], **rule}]
    return inject(net(seed), {**RECIPE, "rules": rules}, example_inputs=EXAMPLE, verify=False)


@pytest.fixture
def weights(tmp_path):
    """As they come out of a file of `torch.save`."""
    torch.save(attended(0).state_dict(), tmp_path / "x.pt")
    return torch.load(tmp_path / "x.pt", weights_only=True)


def watched(model):
    watch(model)
    return model


def silently(model, weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(weights)


def test_a_watched_model_warns(weights):
    model = watched(net(1))
    watch(model)
    with pytest.warns(LostRecipeWarning, match=r"2 sites .*Network.*blocks.0.conv2.simam") as caught:
        model.load_state_dict(weights)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert torch.equal(model.stem.weight, weights["stem.weight"])


def test_an_unwatched_model_does_not(weights):
    silently(net(1), weights)
    model = watched(net(1))
    unwatch(model)
    assert not model._load_state_dict_pre_hooks
    silently(model, weights)


def test_only_sites_that_the_model_lacks_are_named(weights):
    silently(watched(attended(1)), weights)
    with pytest.warns(LostRecipeWarning, match=r"1 sites .*Network.*\(blocks.1.conv2.simam\)"):
        watched(attended(1, pick="first")).load_state_dict(weights)
    with pytest.warns(LostRecipeWarning):
        watched(eject(attended(1))).load_state_dict(weights)


def test_weights_without_the_table_or_without_simam_say_nothing(weights):
    silently(watched(net(1)), dict(weights))
    silently(watched(net(1)), net(0).state_dict())
    silently(watched(attended(1)), net(0).state_dict())


def test_another_attention_at_the_sites_and_a_shared_block_are_not_lost():
    other = watched(inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False, attention=nn.BatchNorm2d))
    silently(other, other.state_dict())
    with pytest.warns(LostRecipeWarning, match="2 sites"):
        watched(net(1)).load_state_dict(other.state_dict(), strict=False)
    shared = attended(1)
    shared.again = shared.blocks
    silently(watched(shared), shared.state_dict())


def test_a_watched_model_can_be_copied_and_injected(weights):
    model = watched(net(1))
    twin = copy.deepcopy(model)
    with pytest.warns(LostRecipeWarning):
        twin.load_state_dict(weights)
    inject(model, RECIPE, example_inputs=EXAMPLE, verify=False)
    silently(model, weights)
