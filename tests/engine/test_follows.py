"""What a forward is given, reads and is told decides anew at each call, as on the stock model with forward hooks."""

import copy
import enum
import random
import threading
import types
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from simam_inject import inject, plan, simam
from simam_inject.errors import ModelError
from tests.engine import blocks
from tests.engine.snapshot import snapshot
from tests.oracle import hooked, same_bits

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))
ONE, SKIP = X[0], torch.ones(2, 4, 8, 8)


class Calling(nn.Module):
    """Calls its block with given arguments, since an example mixes no keywords and positions."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, args, kwargs):
        return self.block(*args, **kwargs)


def injected_pair(block, *args, **kwargs):
    """(plain, injected) with the same weights, `a` attended."""
    torch.manual_seed(4)
    plain = block()
    outer = Calling(copy.deepcopy(plain))
    recipe = {"rules": [{"path": "block.a", "after": "output"}]}
    return plain, inject(outer, recipe, example_inputs=(args, kwargs), verify=False).block


def same_as_hooks(plain, ours, *args, training=False, **kwargs):
    outputs = []
    for model in (plain, ours):
        model.train(training)
        torch.manual_seed(5)
        random.seed(5)
        with hooked(plain, ["a"], 1e-4, simam):
            outputs.append(model(*args, **kwargs))
    torch.manual_seed(5)
    random.seed(5)
    assert not same_bits(outputs[0], plain(*args, **kwargs)), "the attention shows nowhere"
    return same_bits(*outputs)


DECIDING = [
    blocks.BranchesOnShape,
    blocks.BranchesOnBatch,
    blocks.BranchesOnData,
    blocks.BranchesOnDataInTraining,
    blocks.LoopsOverBatch,
    blocks.RepeatsBySize,
    blocks.DrawsInPython,
    blocks.DrawsInTorch,
    blocks.SetsAttribute,
    blocks.SwitchesGradients,
    blocks.DecoratedNoGrad,
    blocks.SwitchesAutocast,
    blocks.AsksForGradients,
]


@pytest.mark.parametrize("block", DECIDING)
def test_other_inputs_and_modes(block):
    plain, ours = injected_pair(block, X)
    for x in (X, X[:1], X[..., :3, :3], -X):
        for training in (False, True):
            assert same_as_hooks(plain, ours, x, training=training)


@pytest.mark.parametrize("block", [*DECIDING, blocks.CountsCalls, blocks.FillsList])
def test_planning_leaves_nothing_behind(block):
    model = block()
    before = snapshot(model)
    plan(model, f"after {block.__name__}.a", example_inputs=X)
    assert snapshot(model) == before


def test_side_effects_of_a_forward_stay():
    _, ours = injected_pair(blocks.FillsList, X)
    ours(X)
    assert [type(item) for item in ours.log] == [torch.Tensor]
    _, ours = injected_pair(blocks.CountsCalls, X)
    ours(X)
    assert ours.calls == 1
    _, ours = injected_pair(blocks.SwitchesGradients, X)
    ours(X).sum().backward()
    assert ours.a.weight.grad is None
    assert ours.b.weight.grad is not None


# What a forward reads changes after the injection


class UpdatesBuffer(blocks.Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(0.0))

    def forward(self, x):
        y = self.a(x)
        self.count += 1
        self.count.mul_(2)
        return self.b(y) * self.count.sqrt()


def test_a_buffer_moves_at_the_users_calls_alone():
    plain, ours = injected_pair(UpdatesBuffer, X)
    assert ours.count.item() == 0
    for _ in range(2):
        with hooked(plain, ["a"], 1e-4, simam):
            assert same_bits(plain(X), ours(X))
    assert ours.count.item() == plain.count.item() == 6


class ScalesByTensor(blocks.Block):
    def __init__(self):
        super().__init__()
        self.scale = torch.tensor(2.0)

    def forward(self, x):
        return self.b(self.a(x)) * self.scale


class Mode(enum.Enum):
    ONE, TWO = 1, 2


class Surrounded(blocks.Block):
    def __init__(self):
        super().__init__()
        self.function, self.mode, self.child = functional.relu, Mode.ONE, nn.ReLU()
        self.settings = types.SimpleNamespace(k=2.0)


class RunsFunction(Surrounded):
    def forward(self, x):
        return self.b(self.function(self.a(x)))


class ReadsEnum(Surrounded):
    def forward(self, x):
        return self.b(self.a(x) * (2 if self.mode is Mode.ONE else 3))


class AsksChild(Surrounded):
    def forward(self, x):
        return self.b(self.a(x) * (2 if isinstance(self.child, nn.ReLU) else 3))


class ReadsSettings(Surrounded):
    def forward(self, x):
        return self.b(self.a(x) * self.settings.k)


FLAG = True


class ReadsGlobal(blocks.Block):
    def forward(self, x):
        return self.b(self.a(x) * (2 if FLAG else 3))


def setting(name, value):
    return lambda model: setattr(model, name, value)


def add_part(model):
    torch.manual_seed(6)
    model.parts.append(blocks.conv())


CHANGES = [
    (blocks.HasFlag, setting("flag", True)),
    (blocks.HasScales, lambda model: model.scales.__setitem__(1, 3.0)),
    (blocks.ReadsChild, lambda model: setattr(model.parts[0], "p", 0.1)),
    (blocks.HasLoop, add_part),
    (blocks.HasLoop, lambda model: model.parts.__delitem__(1)),
    (blocks.HasHoles, setting("extra", nn.Tanh())),
    (blocks.HasHoles, setting("scale", nn.Parameter(torch.ones(1) * 3))),
    (blocks.HasHoles, setting("later", nn.Tanh())),
    (blocks.BranchesOnBuffer, lambda model: model.count.fill_(9.0)),
    (blocks.BranchesOnTensorAttribute, setting("count", torch.tensor(9.0))),
    (ScalesByTensor, setting("scale", torch.tensor(5.0))),
    (RunsFunction, setting("function", functional.gelu)),
    (ReadsEnum, setting("mode", Mode.TWO)),
    (AsksChild, setting("child", nn.GELU())),
    (ReadsSettings, lambda model: setattr(model.settings, "k", 3.0)),
]


@pytest.mark.parametrize(("block", "change"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_a_forward_reads_is_changed(block, change):
    plain, ours = injected_pair(block, X)
    assert same_as_hooks(plain, ours, X)
    before = ours(X)
    for model in (plain, ours):
        change(model)
    for training in (False, True):
        assert same_as_hooks(plain, ours, X, training=training)
    assert not same_bits(ours.eval()(X), before) or block is blocks.ReadsChild


def test_a_global_is_changed(monkeypatch):
    plain, ours = injected_pair(ReadsGlobal, X)
    assert same_as_hooks(plain, ours, X)
    monkeypatch.setitem(globals(), "FLAG", False)
    assert same_as_hooks(plain, ours, X)


def test_a_child_alone_is_frozen():
    plain, ours = injected_pair(blocks.ReadsChild, X)
    for model in (plain, ours):
        model.train()
        model.parts[0].eval()
    with hooked(plain, ["a"], 1e-4, simam):
        assert same_bits(plain(X), ours(X))


# Other arguments than the example's


class AddsParts(blocks.Block):
    def forward(self, x):
        if isinstance(x, (list, tuple)):
            x = (x[0] + x[1])[None]
        return self.b(self.a(x))


class AddsBatch(blocks.Block):
    def forward(self, x):
        if x.dim() == 3:
            x = x.unsqueeze(0)
        return self.b(self.a(x))


class TakesTensor(blocks.Block):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = x * 2
        return self.b(self.a(x["x"] if isinstance(x, dict) else x))


class HasLoss(blocks.Block):
    """A batch goes to `loss`, which comes back with its images."""

    def forward(self, x, scale=1.0):
        return self.loss(x, scale=scale) if isinstance(x, dict) else self.predict(x)

    def predict(self, x):
        return self.b(self.a(x))

    def loss(self, batch, scale):
        return self.predict(batch["x"]).sum() * scale


CALLS = [
    (blocks.HasOptional, (X,), {}, (X, SKIP), {}),
    (blocks.HasOptional, (X, SKIP), {}, (X, None), {}),
    (blocks.HasOptional, (X, SKIP), {}, (X,), {"skip": SKIP}),
    (blocks.TakesKeywords, (X,), {}, (X,), {"scale": 2.0}),
    (blocks.TakesKeywords, (X,), {"scale": 2.0}, (X,), {}),
    (blocks.TakesExtras, (X,), {}, (X, SKIP), {}),
    (blocks.TakesExtras, (X, SKIP), {}, (X,), {}),
    (blocks.TakesKeywordOnly, (X,), {}, (X,), {"skip": SKIP}),
    (blocks.TakesKeywordOnly, (X,), {"skip": SKIP}, (X,), {"scale": 2.0}),
    (blocks.TakesDict, ({"x": X},), {}, ({"x": X, "mask": SKIP},), {}),
    (blocks.TakesDict, ({"x": X, "mask": SKIP},), {}, ({"x": X},), {}),
    (blocks.TakesList, ([X, None],), {}, ([X, SKIP],), {}),
    (blocks.TakesList, ([X, SKIP],), {}, ([X, None],), {}),
    (blocks.TakesList, ([X],), {}, ((X, SKIP),), {}),
    (blocks.TakesMode, (X, "full"), {}, (X, "half"), {}),
    (AddsParts, ([ONE, ONE],), {}, (X,), {}),
    (AddsParts, (X,), {}, ((ONE, ONE),), {}),
    (AddsBatch, (X,), {}, (ONE,), {}),
    (TakesTensor, (X,), {}, ({"x": X},), {}),
    (TakesTensor, ({"x": X},), {}, (X,), {}),
    (HasLoss, (X,), {}, ({"x": X}, 2.0), {}),
]


@pytest.mark.parametrize(("block", "args", "kwargs", "other_args", "other_kwargs"), CALLS)
def test_another_call_than_the_examples(block, args, kwargs, other_args, other_kwargs):
    plain, ours = injected_pair(block, *args, **kwargs)
    for training in (False, True):
        assert same_as_hooks(plain, ours, *args, training=training, **kwargs)
        assert same_as_hooks(plain, ours, *other_args, training=training, **other_kwargs)


def test_an_input_without_its_batch_is_refused():
    _, ours = injected_pair(blocks.Block, X)
    with pytest.raises(ModelError, match=r"planned for 4 dimensions .NCHW., but got a tensor of shape"):
        ours(ONE)


# Classes and threads


class Registry(nn.Module):
    """Has a hook for subclasses that wants a keyword."""

    heard: ClassVar = []

    def __init_subclass__(cls, *, key, **options):
        Registry.heard.append(key)


class Registered(Registry, key="registered"):
    def __init__(self):
        super().__init__()
        self.a, self.b = blocks.conv(), blocks.conv()

    def forward(self, x):
        return self.b(self.a(x))


def test_no_class_is_made():
    plain, ours = injected_pair(Registered, X)
    assert Registry.heard == ["registered"]
    assert type(ours) is Registered
    assert same_as_hooks(plain, ours, X)


class WaitsForThread(blocks.Block):
    """While it is recorded, another thread switches gradients and changes modules, as a server does."""

    failed: ClassVar = []

    def forward(self, x):
        thread = threading.Thread(target=work_elsewhere, args=(self.b,))
        thread.start()
        thread.join()
        return self.b(self.a(x))


def work_elsewhere(module):
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            assert not torch.is_grad_enabled()
            module.mark = object()
    except BaseException as error:
        WaitsForThread.failed.append(error)
        raise


def test_other_threads_are_not_watched():
    plain, ours = injected_pair(WaitsForThread, X)
    assert WaitsForThread.failed == []
    assert same_as_hooks(plain, ours, X)


class Delegates(nn.Module):
    """A wrapper that looks up in what it wraps."""

    def __init__(self):
        super().__init__()
        self.inner = blocks.Block()
        self.inner.k = 2.0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, x):
        return self.b(self.a(x) * self.k)


def test_a_wrapper_that_looks_up_elsewhere():
    plain = Delegates()
    ours = inject(copy.deepcopy(plain), "after delegates.inner.a", example_inputs=X, verify=False)
    for model in (plain, ours):
        model.inner.k = 3.0
    with hooked(plain, ["inner.a"], 1e-4, simam):
        assert same_bits(plain(X), ours(X))
