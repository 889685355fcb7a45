"""Zero effect is an error, whatever was in the model before; and a rule without any effect says why."""

import pytest
import torch
from torch import nn

from simam_inject import inject, injected, plan
from simam_inject.errors import NoMatchError
from tests.engine.blocks import Block, Net

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))
RECIPE = {"name": "maybe", "rules": [{"block": "Bottleneck", "after": "conv2", "optional": True}]}
THERE = {"block": "Block", "after": "a"}
NOWHERE = {"block": "Nope", "after": "output", "optional": True}


@pytest.fixture
def model():
    return inject(Net(Block()).eval(), "after block.a", example_inputs=X)


def test_optional_rules_without_any_effect():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert plan(model, RECIPE).insertions == ()
    with pytest.raises(NoMatchError, match="maybe matched no site in this model: all its rules are optional"):
        inject(model, RECIPE)


def test_what_another_recipe_left_is_no_effect_of_this_one(model):
    with pytest.raises(NoMatchError, match=r"matched no site(.|\n)*no block named 'Nope'"):
        inject(model, {"rules": [NOWHERE]}, example_inputs=X)
    assert len(injected(model)) == 1


def test_an_optional_rule_that_wants_another_lambda(model):
    rule = {**THERE, "e_lambda": 0.1, "optional": True}
    with pytest.raises(NoMatchError, match=r"has no effect on this model(.|\n)*e_lambda 0.0001 instead of 0.1"):
        inject(model, {"rules": [rule]}, example_inputs=X)


def test_the_same_recipe_again_may_have_optional_rules_without_effect(model):
    with pytest.warns(UserWarning, match="nothing to inject: all 1 sites"):
        inject(model, {"rules": [THERE, NOWHERE]}, example_inputs=X)


def test_an_optional_rule_that_hits_nothing_is_in_the_plan():
    made = plan(Net(Block()), {"rules": [THERE, NOWHERE]}, example_inputs=X)
    (skip,) = made.skips
    assert (skip.rule, skip.hit) == (1, False)
    assert skip.reason.startswith("this model has no block named 'Nope'")


def test_an_exclude_that_excludes_nothing(model):
    rule = {"path": "*", "after": "conv2d", "optional": True}
    with pytest.raises(NoMatchError, match=r"exclude: 'blok.\*' matches nothing in this model"):
        inject(model, {"rules": [rule]}, exclude=["blok.*"], example_inputs=X)


class Unread(nn.Module):
    """Nothing that it returns depends on `dead` and `last`."""

    def __init__(self, act):
        super().__init__()
        self.act, self.a, self.dead, self.last = act, *(nn.Conv2d(before, 8, 3, padding=1) for before in (3, 8, 8))
        self.norm, self.out = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = torch.relu(self.a(x))
        z = self.last(self.act(self.norm(self.dead(y))))
        z += y
        return self.out(y)


class Stored(Unread):
    """It stores what is computed there in an attribute, where anyone may read it."""

    def forward(self, x):
        y = torch.relu(self.a(x))
        self.seen = self.last(self.act(self.norm(self.dead(y))))
        return self.out(y)


class Added(Unread):
    """What is computed there is written into a part of the result."""

    def forward(self, x):
        y = torch.relu(self.a(x))
        result = self.out(y).clone()
        result[:, :1] += self.last(self.act(self.norm(self.dead(y)))).mean(1, keepdim=True)
        return result


class Buffered(Unread):
    """A result reads it from a buffer, into which it is written."""

    def __init__(self, act):
        super().__init__(act)
        self.register_buffer("ring", torch.zeros(2, 8, 8, 8))

    def forward(self, x):
        y = torch.relu(self.a(x))
        self.ring.copy_(self.last(self.act(self.norm(self.dead(y)))))
        return self.out(y + self.ring.mean())


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), Swish()])
@pytest.mark.parametrize("path", ["dead", "norm", "last"])
def test_what_no_output_depends_on_is_skipped(path, act):
    rule = {"path": path, "after": "output"}
    reason = rf"{path}: (no output of the model depends on it|its output is never used)"
    with pytest.raises(NoMatchError, match=reason):
        plan(Unread(act).eval(), {"rules": [rule]}, example_inputs=X)
    for kind in (Stored, Added, Buffered):
        assert [one.path for one in plan(kind(act).eval(), {"rules": [rule]}, example_inputs=X).insertions] == [path]
    planned = plan(Unread(act).eval(), "every-conv", example_inputs=X)
    assert [one.path for one in planned.insertions] == ["a", "out"]
    assert [skip.path for skip in planned.skips if skip.hit] == ["dead", "last"]
