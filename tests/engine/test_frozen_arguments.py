"""Fault A: what a forward is given and reads decides anew at each call, as on the stock model with forward hooks."""

import copy
import random
import threading
from typing import ClassVar

import pytest
import torch
from torch import nn

from simam_inject import inject, simam
from tests.engine.blocks import Block, HasOptional, conv
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


class LoopsOverBatch(Block):
    def forward(self, x):
        return torch.stack([self.b(part[None])[0] for part in self.a(x)])


class SwitchesGradients(Block):
    def forward(self, x):
        with torch.no_grad():
            y = self.a(x)
        return self.b(y)


class DecoratedNoGrad(Block):
    @torch.no_grad()
    def forward(self, x):
        return self.b(self.a(x))


class SwitchesAutocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.a(x.float())
        return self.b(y)


class AsksForGradients(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if torch.is_grad_enabled() else y


class ReadsChild(Block):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Dropout(0.5)])

    def forward(self, x):
        return nn.functional.dropout(self.b(self.a(x)), self.parts[0].p, self.parts[0].training)


class HasHoles(Block):
    def __init__(self):
        super().__init__()
        self.register_module("extra", None)
        self.register_parameter("scale", None)

    def forward(self, x):
        y = self.b(self.a(x))
        y = y if self.extra is None else self.extra(y)
        y = y if self.scale is None else y * self.scale
        return self.later(y) if hasattr(self, "later") else y


class TakesKeywords(Block):
    def forward(self, x, **options):
        return self.b(self.a(x)) * options.get("scale", 1.0)


class TakesExtras(Block):
    def forward(self, x, *more):
        y = self.a(x)
        return self.b(y + more[0]) if more else self.b(y)


class TakesKeywordOnly(Block):
    def forward(self, x, *, scale=1.0, skip=None):
        y = self.b(self.a(x)) * scale
        return y if skip is None else y + skip


class TakesDict(Block):
    def forward(self, batch):
        y = self.a(batch["x"])
        return self.b(y * batch["mask"]) if "mask" in batch else self.b(y)


class TakesList(Block):
    def forward(self, parts):
        y = self.a(parts[0])
        for part in parts[1:]:
            if part is not None:
                y = y + part
        return self.b(y)


class TakesMode(Block):
    def forward(self, x, mode):
        y = self.a(x)
        return self.b(y) if mode == "full" else y


DECIDING = [LoopsOverBatch, SwitchesGradients, DecoratedNoGrad, SwitchesAutocast, AsksForGradients]


@pytest.mark.parametrize("block", DECIDING)
def test_other_inputs_and_modes(block):
    plain, ours = injected_pair(block, X)
    for x in (X, X[:1], X[..., :3, :3], -X):
        for training in (False, True):
            assert same_as_hooks(plain, ours, x, training=training)


def test_gradients_that_a_forward_switches_off_stay_off():
    _, ours = injected_pair(SwitchesGradients, X)
    ours(X).sum().backward()
    assert ours.a.weight.grad is None
    assert ours.b.weight.grad is not None


# What a forward reads changes after the injection


def setting(name, value):
    return lambda model: setattr(model, name, value)


CHANGES = [
    (ReadsChild, lambda model: setattr(model.parts[0], "p", 0.1)),
    (HasHoles, setting("extra", nn.Tanh())),
    (HasHoles, setting("scale", nn.Parameter(torch.ones(1) * 3))),
    (HasHoles, setting("later", nn.Tanh())),
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
    assert not same_bits(ours.eval()(X), before) or block is ReadsChild


def test_a_child_alone_is_frozen():
    plain, ours = injected_pair(ReadsChild, X)
    for model in (plain, ours):
        model.train()
        model.parts[0].eval()
    with hooked(plain, ["a"], 1e-4, simam):
        assert same_bits(plain(X), ours(X))


# Other arguments than the example's


class AddsParts(Block):
    def forward(self, x):
        if isinstance(x, (list, tuple)):
            x = (x[0] + x[1])[None]
        return self.b(self.a(x))


class AddsBatch(Block):
    def forward(self, x):
        if x.dim() == 3:
            x = x.unsqueeze(0)
        return self.b(self.a(x))


class TakesTensor(Block):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = x * 2
        return self.b(self.a(x["x"] if isinstance(x, dict) else x))


class HasLoss(Block):
    """A batch goes to `loss`, which comes back with its images."""

    def forward(self, x, scale=1.0):
        return self.loss(x, scale=scale) if isinstance(x, dict) else self.predict(x)

    def predict(self, x):
        return self.b(self.a(x))

    def loss(self, batch, scale):
        return self.predict(batch["x"]).sum() * scale


CALLS = [
    (HasOptional, (X,), {}, (X, SKIP), {}),
    (HasOptional, (X, SKIP), {}, (X, None), {}),
    (HasOptional, (X, SKIP), {}, (X,), {"skip": SKIP}),
    (TakesKeywords, (X,), {}, (X,), {"scale": 2.0}),
    (TakesKeywords, (X,), {"scale": 2.0}, (X,), {}),
    (TakesExtras, (X,), {}, (X, SKIP), {}),
    (TakesExtras, (X, SKIP), {}, (X,), {}),
    (TakesKeywordOnly, (X,), {}, (X,), {"skip": SKIP}),
    (TakesKeywordOnly, (X,), {"skip": SKIP}, (X,), {"scale": 2.0}),
    (TakesDict, ({"x": X},), {}, ({"x": X, "mask": SKIP},), {}),
    (TakesDict, ({"x": X, "mask": SKIP},), {}, ({"x": X},), {}),
    (TakesList, ([X, None],), {}, ([X, SKIP],), {}),
    (TakesList, ([X, SKIP],), {}, ([X, None],), {}),
    (TakesList, ([X],), {}, ((X, SKIP),), {}),
    (TakesMode, (X, "full"), {}, (X, "half"), {}),
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


# Classes and threads


class Registry(nn.Module):
    """Has a hook for subclasses that wants a keyword."""

    heard: ClassVar = []

    def __init_subclass__(cls, *, key, **options):
        Registry.heard.append(key)


class Registered(Registry, key="registered"):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x):
        return self.b(self.a(x))


def test_no_class_is_made():
    plain, ours = injected_pair(Registered, X)
    assert Registry.heard == ["registered"]
    assert type(ours) is Registered
    assert same_as_hooks(plain, ours, X)


class WaitsForThread(Block):
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
        self.inner = Block()
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
