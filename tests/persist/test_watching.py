"""Weights that were trained with SimAM and meet a model without it."""

import copy
import warnings

import pytest
import torch
from torch import nn

from simam_inject import eject, inject
from simam_inject.persist import LostRecipeWarning, unwatch, watch
from tests.persist.networks import EXAMPLE, RECIPE, net


@pytest.fixture
def weights(tmp_path):
    """As they come out of a file of `torch.save`."""
    torch.save(inject(net(0), RECIPE, example_inputs=EXAMPLE, verify=False).state_dict(), tmp_path / "x.pt")
    return torch.load(tmp_path / "x.pt", weights_only=True)


@pytest.fixture
def watching():
    plain = nn.Module.load_state_dict
    watch()
    yield
    unwatch()
    assert nn.Module.load_state_dict is plain


def silently(model, weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(weights)


def test_a_watched_model_warns_once(weights):
    model = net(1)
    watch(model)
    watch(model)
    with pytest.warns(LostRecipeWarning, match=r"2 places that this Net lacks \(blocks.0.simam_conv2, ") as caught:
        model.load_state_dict(weights)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    silently(model, weights)
    assert torch.equal(model.stem.weight, weights["stem.weight"])


def test_an_unwatched_model_says_nothing(weights):
    silently(net(1), weights)
    model = net(1)
    watch(model)
    unwatch(model)
    assert not model._load_state_dict_pre_hooks
    silently(model, weights)


def test_a_whole_process_is_watched(weights, watching):
    watch()
    with pytest.warns(LostRecipeWarning, match="2 places") as caught:
        net(1).load_state_dict(weights)
    assert caught[0].filename == __file__
    with pytest.warns(LostRecipeWarning, match="2 places"):
        net(2).load_state_dict(weights, strict=False)


def test_an_injected_model_is_content(weights, watching):
    silently(inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False), weights)


def test_a_part_of_the_sites_is_missed(weights, watching):
    model = inject(
        net(1),
        {**RECIPE, "rules": [{"block": "Block", "after": "conv2", "pick": "first"}]},
        example_inputs=EXAMPLE,
        verify=False,
    )
    with pytest.warns(LostRecipeWarning, match=r"1 places that this Net lacks \(blocks.1.simam_conv2\)"):
        model.load_state_dict(weights)


def test_plain_weights_are_nobodys_loss(watching):
    silently(net(1), net(0).state_dict())
    silently(inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False), net(0).state_dict())


def test_a_dict_without_the_table_cannot_be_told(weights, watching):
    silently(net(1), dict(weights))


def test_an_ejected_model_warns(weights, watching):
    model = eject(inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False))
    with pytest.warns(LostRecipeWarning):
        model.load_state_dict(weights)


def test_a_watched_model_can_be_copied_and_injected(weights):
    model = net(1)
    watch(model)
    twin = copy.deepcopy(model)
    with pytest.warns(LostRecipeWarning):
        twin.load_state_dict(weights)
    inject(model, RECIPE, example_inputs=EXAMPLE, verify=False)
    silently(model, weights)
