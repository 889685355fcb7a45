"""Injection is all or nothing: a failure midway, a stale plan and a mere inspection leave the model as it was."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from simam_inject import SimAM, api, inject, injected, plan
from simam_inject.editing import attach
from simam_inject.errors import ModelError
from tests.engine.blocks import Block, Net, network
from tests.oracle import same_bits
from tests.snapshot import snapshot

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


def run(model):
    with torch.no_grad():
        return model(X)


def test_a_plan_is_applied_once_and_to_the_planned_model():
    model = network()
    planned = copy.deepcopy(plan(model, "after block.a", example_inputs=X))
    assert injected(model) == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "update", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            planned.apply()
    assert not injected(model)
    assert planned.apply() is model
    assert injected(model) == planned.insertions
    with pytest.raises(ModelError, match="has changed since the plan was made"):
        planned.apply()
    other = plan(network(), "after block.a", example_inputs=X)
    other.apply()
    changed = network()
    stale = plan(changed, "after block.a", example_inputs=X)
    changed[1].inner = Block()
    before = snapshot(changed)
    with pytest.raises(ModelError, match="has changed since the plan was made"):
        stale.apply()
    assert snapshot(changed) == before


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("present", [False, True], ids=["fresh", "onto another"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_failure_midway_leaves_everything_as_it_was(monkeypatch, step, present, error):
    model = network()
    if present:
        inject(model, "after block.b", example_inputs=X)
        model[1].inner.register_forward_hook(lambda module, args, output: None)
        next(m for m in model.modules() if isinstance(m, SimAM)).mark = "the very same object"
    before, expected = snapshot(model), run(model)
    real, calls = SimAM.__init__, []

    def failing(attention, *args, **kwargs):
        calls.append(args)
        if len(calls) == step + 1:
            raise error("midway")
        real(attention, *args, **kwargs)

    monkeypatch.setattr(SimAM, "__init__", failing)
    rules = [{"block": "block", "after": "a"}, {"block": "net2", "after": "output"}]
    with pytest.raises(error, match="midway"):
        inject(model, {"rules": rules}, example_inputs=X)
    assert len(calls) == step + 1
    monkeypatch.undo()
    assert snapshot(model) == before
    assert same_bits(run(model), expected)
    inject(model, {"rules": rules}, example_inputs=X)
    assert len(injected(model)) == 4 + 2 * present


@pytest.mark.parametrize("step", range(1, 4))
def test_a_hook_that_fails_midway(monkeypatch, step):
    model = network()
    before = snapshot(model)
    real, calls = attach.OutputHook.put_on, []

    def failing(hook, module):
        calls.append(hook)
        if len(calls) == step:
            raise MemoryError("midway")
        real(hook, module)

    monkeypatch.setattr(attach.OutputHook, "put_on", failing)
    rules = [{"block": "block", "after": "a"}, {"block": "net2", "after": "output"}]
    with pytest.raises(MemoryError, match="midway"):
        inject(model, {"rules": rules}, example_inputs=X)
    assert snapshot(model) == before


class Sensitive(Block):
    """Everything that an inspection could disturb."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.cache = {"calls": []}

    def forward(self, x):
        self.cache["last"] = tuple(x.shape)
        noise = torch.rand(1) + random.random() + float(np.random.rand())
        return self.drop(self.norm(self.b(self.a(x)))) + noise


@pytest.mark.parametrize("training", [False, True])
def test_inspection_leaves_no_trace(training):
    torch.manual_seed(1)
    model = Net(Sensitive()).train(training)
    model.block.norm.eval()
    model.stem.weight.requires_grad_(False)
    model(X).sum().backward()
    fired = []

    def once(*_):
        fired.append(1)
        handle.remove()

    handle = model.block.a.register_forward_hook(once)
    states = [random.getstate(), np.random.get_state()[1].tolist()]
    before = snapshot(model)
    planned = plan(model, "after sensitive.a", example_inputs=X)
    assert str(planned)
    assert planned.to_dict()["insertions"]
    assert snapshot(model) == before
    assert [random.getstate(), np.random.get_state()[1].tolist()] == states
    assert not fired
    assert len(model.block.a._forward_hooks) == 1
