"""A recipe whose rules may all hit nothing: zero effect is an error all the same."""

import pytest
from torch import nn

from simam_inject import inject, plan
from simam_inject.errors import NoMatchError

RECIPE = {"name": "maybe", "rules": [{"block": "Bottleneck", "after": "conv2", "optional": True}]}


def test_optional_rules_without_any_effect():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert plan(model, RECIPE).insertions == ()
    with pytest.raises(NoMatchError, match="maybe takes no site in this model: all its rules are optional"):
        inject(model, RECIPE)
