"""What the example forward decided is not silently the decision for ever: refused, checked, or kept open."""

import copy
import random
import threading
from typing import ClassVar

import pytest
import torch
from torch import nn

from simam_inject import InjectError, eject, inject, injected, plan, simam
from tests.engine import blocks
from tests.engine.oracle import hooked, same_bits, snapshot

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))


def injected_pair(block, example=X):
    """(plain, injected) with the same weights, `a` attended."""
    torch.manual_seed(4)
    model = block()
    plain = copy.deepcopy(model)
    return plain, inject(model, {"rules": [{"block": block.__name__, "after": "a"}]}, example_inputs=example)


def same_as_hooks(plain, ours, *args, training=False, **kwargs):
    plain.train(training), ours.train(training)
    outputs = []
    for model in (plain, ours):
        torch.manual_seed(5)
        random.seed(5)
        with hooked(plain, ["a"], 1e-4, simam):
            outputs.append(model(*args, **kwargs))
    return same_bits(*outputs)


OPAQUE = [
    (blocks.BranchesOnShape, "branches on a shape"),
    (blocks.BranchesOnBatch, "len() of a tensor"),
    (blocks.BranchesOnData, "branches on a tensor's content"),
    (blocks.BranchesOnBuffer, "branches on a tensor's content"),
    (blocks.BranchesOnTensorAttribute, "branches on a tensor's content"),
    (blocks.BranchesOnDataInTraining, "in train mode it branches on a tensor's content"),
    (blocks.LoopsOverBatch, "iterates over a tensor"),
    (blocks.RepeatsBySize, "into a Python number"),
    (blocks.DrawsInPython, "draws random numbers"),
    (blocks.DrawsInTorch, "draws random numbers"),
    (blocks.SetsAttribute, "sets an attribute of a module (last)"),
    (blocks.CountsCalls, "sets an attribute of a module (calls)"),
    (blocks.FillsList, "changes a list of the module (log)"),
    (blocks.SwitchesGradients, "switches gradients or autocast"),
    (blocks.DecoratedNoGrad, "switches gradients or autocast"),
    (blocks.SwitchesAutocast, "switches gradients or autocast"),
    (blocks.AsksForGradients, "whether gradients or autocast are on"),
]


@pytest.mark.parametrize(("block", "reason"), OPAQUE, ids=lambda value: getattr(value, "__name__", ""))
def test_what_a_graph_cannot_hold_is_left_as_it_is(block, reason):
    plain, ours = injected_pair(block)
    (there,) = injected(ours)
    assert (there.path, there.means) == ("a", "boundary")
    assert reason in there.note
    assert type(ours) is block
    for x in (X, X[:1], X[..., :3, :3], -X):
        for training in (False, True):
            assert same_as_hooks(plain, ours, x, training=training)


@pytest.mark.parametrize(("block", "reason"), OPAQUE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_refused_trace_leaves_nothing_behind(block, reason):
    model = block()
    before = snapshot(model)
    plan(model, f"after {block.__name__}.a", example_inputs=X)
    assert snapshot(model) == before


def test_what_it_decides_later_is_decided_later():
    plain, ours = injected_pair(blocks.BranchesOnBuffer)
    for model in (plain, ours):
        model.count.fill_(9.0)
    assert same_as_hooks(plain, ours, X)
    plain, ours = injected_pair(blocks.BranchesOnTensorAttribute)
    for model in (plain, ours):
        model.count = torch.tensor(9.0)
    assert same_as_hooks(plain, ours, X)


def test_side_effects_of_a_forward_stay():
    _, ours = injected_pair(blocks.FillsList)
    ours(X)
    assert [type(item) for item in ours.log] == [torch.Tensor]
    _, ours = injected_pair(blocks.CountsCalls)
    ours(X)
    assert ours.calls == 1
    _, ours = injected_pair(blocks.SwitchesGradients)
    ours(X).sum().backward()
    assert ours.a.weight.grad is None
    assert ours.b.weight.grad is not None


class UpdatesBuffer(blocks.Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(0.0))

    def forward(self, x):
        y = self.a(x)
        self.count += 1
        self.count.mul_(2)
        return self.b(y) * self.count.sqrt()


def test_buffers_are_updated_by_the_graph_and_not_by_the_tracer():
    plain, ours = injected_pair(UpdatesBuffer)
    assert injected(ours)[0].means == "forward"
    assert ours.count.item() == 0
    for _ in range(2):
        assert same_as_hooks(plain, ours, X)
    assert ours.count.item() == plain.count.item() == 6


class ScalesByTensor(blocks.Block):
    def __init__(self):
        super().__init__()
        self.scale = torch.tensor(2.0)

    def forward(self, x):
        return self.b(self.a(x)) * self.scale


def test_a_tensor_attribute_is_read_in_every_forward():
    plain, ours = injected_pair(ScalesByTensor)
    assert injected(ours)[0].means == "forward"
    plain.scale = ours.scale = torch.tensor(5.0)
    assert same_as_hooks(plain, ours, X)


def set_flag(model):
    model.flag = True


def set_scale(model):
    model.scales[1] = 3.0


def set_probability(model):
    model.parts[0].p = 0.1


def freeze_child(model):
    model.train()
    model.parts[0].eval()


def add_part(model):
    torch.manual_seed(6)
    model.parts.append(blocks.conv())


def remove_part(model):
    del model.parts[1]


@pytest.mark.parametrize(
    ("block", "change", "named"),
    [
        (blocks.HasFlag, set_flag, "flag"),
        (blocks.HasScales, set_scale, "scales"),
        (blocks.ReadsChild, set_probability, "parts.0.p"),
        (blocks.ReadsChild, freeze_child, "parts.0.training"),
        (blocks.HasLoop, add_part, "modules in parts"),
        (blocks.HasLoop, remove_part, "modules in parts"),
    ],
)
def test_a_changed_constant_is_loud(block, change, named):
    plain, ours = injected_pair(block)
    for training in (False, True):
        assert same_as_hooks(plain, ours, X, training=training)
    change(ours)
    with pytest.raises(InjectError, match=named) as caught:
        ours(X)
    assert "eject" in str(caught.value)
    change(plain)
    ours = inject(eject(ours), {"rules": [{"path": "a", "after": "output"}]}, example_inputs=X)
    if change is not freeze_child:
        assert same_as_hooks(plain, ours, X)


SKIP = torch.ones(2, 4, 8, 8)
CALLS = [
    (blocks.HasOptional, (X,), {}, (X, SKIP), {}),
    (blocks.HasOptional, (X, SKIP), {}, (X,), {}),
    (blocks.HasOptional, (X, SKIP), {}, (X, None), {}),
    (blocks.TakesKeywords, (X,), {}, (X,), {"scale": 2.0}),
    (blocks.TakesKeywords, (X,), {"scale": 2.0}, (X,), {"scale": 3.0}),
    (blocks.TakesKeywords, (X,), {"scale": 2.0}, (X,), {}),
    (blocks.TakesExtras, (X,), {}, (X, SKIP), {}),
    (blocks.TakesExtras, (X, SKIP), {}, (X,), {}),
    (blocks.TakesExtras, (X, SKIP), {}, (X, SKIP, SKIP), {}),
    (blocks.TakesKeywordOnly, (X,), {}, (X,), {"scale": 2.0}),
    (blocks.TakesKeywordOnly, (X,), {}, (X,), {"skip": SKIP}),
    (blocks.TakesKeywordOnly, (X,), {"skip": SKIP}, (X,), {}),
    (blocks.TakesDict, ({"x": X, "other": X},), {}, ({"x": X, "mask": SKIP},), {}),
    (blocks.TakesDict, ({"x": X},), {}, ({"x": X, "mask": SKIP},), {}),
    (blocks.TakesDict, ({"x": X, "mask": SKIP},), {}, ({"x": X},), {}),
    (blocks.TakesList, ([X, None],), {}, ([X, SKIP],), {}),
    (blocks.TakesList, ([X, SKIP],), {}, ([X, None],), {}),
    (blocks.TakesList, ([X, SKIP],), {}, ([X, SKIP, SKIP],), {}),
    (blocks.TakesList, ([X],), {}, ((X, SKIP),), {}),
    (blocks.TakesMode, (X, "full"), {}, (X, "half"), {}),
]


class Calling(nn.Module):
    """Calls its block as it is told, since an example is one call and keywords and positions mix."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, args, kwargs):
        return self.block(*args, **kwargs)


@pytest.mark.parametrize(("block", "args", "kwargs", "other_args", "other_kwargs"), CALLS)
def test_another_call_than_the_examples_is_loud(block, args, kwargs, other_args, other_kwargs):
    torch.manual_seed(4)
    plain = block()
    ours = inject(Calling(copy.deepcopy(plain)), f"after {block.__name__}.a", example_inputs=(args, kwargs)).block
    assert (injected(ours)[0].path, injected(ours)[0].means) == ("a", "forward")
    assert same_as_hooks(plain, ours, *args, **kwargs)
    with pytest.raises(InjectError, match="argument"):
        ours(*other_args, **other_kwargs)
    for training in (False, True):
        assert same_as_hooks(plain, ours, *args, training=training, **kwargs)


def test_a_keyword_may_be_passed_by_position_and_back():
    plain, ours = injected_pair(blocks.HasOptional, (X, SKIP))
    assert same_as_hooks(plain, ours, X, skip=SKIP)
    assert same_as_hooks(plain, ours, skip=SKIP, x=X)


class DropsInTraining(blocks.Block):
    def forward(self, x):
        y = self.a(x)
        if self.training:
            y = torch.nn.functional.dropout(self.b(y), 0.5)
        return self.b(y)


def test_train_and_eval_graphs_are_both_kept():
    plain, ours = injected_pair(DropsInTraining)
    assert injected(ours)[0].means == "forward"
    for training in (True, False, True):
        assert same_as_hooks(plain, ours, X, training=training)


class Told(nn.Module):
    """Has a hook for subclasses that wants a keyword, as registries have."""

    heard: ClassVar = []

    def __init_subclass__(cls, *, key, **options):
        Told.heard.append(key)


class Registered(Told, key="registered"):
    def __init__(self):
        super().__init__()
        self.a, self.b = blocks.conv(), blocks.conv()

    def forward(self, x):
        return self.b(self.a(x))


def test_a_registry_of_subclasses_hears_nothing():
    plain, ours = injected_pair(Registered)
    assert Told.heard == ["registered"]
    assert isinstance(ours, Registered)
    assert injected(ours)[0].means == "forward"
    assert same_as_hooks(plain, ours, X)


class WaitsForThread(blocks.Block):
    """While it is traced, another thread switches gradients and changes modules, as a server does."""

    def forward(self, x):
        thread = threading.Thread(target=work_elsewhere, args=(self.b,))
        thread.start()
        thread.join()
        return self.b(self.a(x))


FAILED_ELSEWHERE = []


def work_elsewhere(module):
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            assert not torch.is_grad_enabled()
            module.mark = object()
    except BaseException as error:
        FAILED_ELSEWHERE.append(error)
        raise


def test_other_threads_are_not_watched():
    plain, ours = injected_pair(WaitsForThread)
    assert FAILED_ELSEWHERE == []
    assert injected(ours)[0].means == "forward"
    assert same_as_hooks(plain, ours, X)


@pytest.mark.parametrize(
    ("name", "value"), [("extra", nn.Tanh()), ("scale", nn.Parameter(torch.ones(1) * 3)), ("later", nn.Tanh())]
)
def test_what_was_not_there_and_comes_later_is_loud(name, value):
    plain, ours = injected_pair(blocks.HasHoles)
    assert injected(ours)[0].means == "forward"
    assert same_as_hooks(plain, ours, X)
    setattr(ours, name, value)
    with pytest.raises(InjectError, match=name):
        ours(X)
    setattr(plain, name, value)
    inject(eject(ours), "after hasholes.a", example_inputs=X)
    assert same_as_hooks(plain, ours, X)
