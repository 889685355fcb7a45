"""The bodies of one module: both modes, alternatives, parts that are called by others too, children that are listed."""

import copy
import functools
import inspect
import pickle

import pytest
import timm
import torch
from torch import nn

from simam_inject import InjectError, bypass, eject, inject, injected, simam
from tests.engine.blocks import Block, conv
from tests.engine.oracle import hooked, same_bits

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))


def pair(block, recipe):
    """(plain, injected) with the same weights."""
    torch.manual_seed(4)
    plain = block().eval()
    return plain, inject(copy.deepcopy(plain), recipe, example_inputs=X)


def run(model, x=X, *, training=False):
    torch.manual_seed(5)
    with torch.no_grad():
        return model.train(training)(x)


# A forward that goes through its own children would meet SimAM among them.


class ListsTable(nn.Sequential):
    def forward(self, x):
        for child in self._modules.values():
            x = child(x)
        return x


class ListsChildren(Block):
    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


class ListsThroughHelper(Block):
    def forward(self, x):
        return self.run_all(x)

    def run_all(self, x):
        for name, child in self.named_children():
            x = child(x) if name else x
        return x

    def forward_twice(self, x):
        for child in (*self.children(), *self.children()):
            x = child(x)
        return x


class ListsUntraceably(Block):
    def forward(self, x):
        for child in self.children():
            x = child(x) if x.mean() > -9 else x
        return x


def in_net(block):
    return nn.Sequential(block(conv(), conv()) if block is ListsTable else block(), nn.ReLU())


@pytest.mark.parametrize("block", [ListsTable, ListsChildren, ListsThroughHelper])
def test_a_block_that_lists_its_children_is_attended_once(block):
    plain, ours = pair(lambda: in_net(block), f"after {block.__name__}")
    for training in (False, True):
        with hooked(plain, ["0"], 1e-4, simam):
            assert same_bits(run(ours, training=training), run(plain, training=training))
    twins = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    assert all(same_bits(run(twin), run(ours)) for twin in twins)
    assert same_bits(torch.compile(ours, fullgraph=True, backend="eager")(X), run(ours))
    assert same_bits(run(eject(ours)), run(plain))


def test_other_methods_that_list_children_meet_no_attention():
    plain, ours = pair(ListsThroughHelper, "after ListsThroughHelper.a")
    with hooked(plain, ["a"], 1e-4, simam):
        assert same_bits(run(ours), run(plain))
    assert same_bits(ours.forward_twice(X), plain.b(plain.a(plain.b(simam(plain.a(X))))))


def test_a_block_that_lists_its_children_and_cannot_be_traced_is_refused():
    with pytest.raises(InjectError, match="branches on a tensor's content"):
        pair(lambda: in_net(ListsUntraceably), "after ListsUntraceably")


# The same value in train mode.


class AddsNoise(Block):
    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x) * 0.1
        y = self.a(x)
        y = y + x
        return torch.relu(y)


def test_an_operation_is_the_same_one_in_train_mode():
    _, ours = pair(AddsNoise, "after AddsNoise.add")
    torch.manual_seed(5)
    x = X + torch.randn_like(X) * 0.1
    assert same_bits(run(ours, training=True), torch.relu(simam(ours.a(x) + x)).detach())
    assert same_bits(run(ours), torch.relu(simam(ours.a(X) + X)).detach())


class RectifiesOnceMore(Block):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        if self.training:
            x = self.relu(x - 0.5)
        return self.relu(self.b(self.relu(self.a(x)))) * 2


def test_a_second_call_is_the_same_one_in_train_mode():
    _, ours = pair(RectifiesOnceMore, "after RectifiesOnceMore.relu[2]")
    x = torch.relu(X - 0.5)
    expected = simam(torch.relu(ours.b(torch.relu(ours.a(x))))) * 2
    assert same_bits(run(ours, training=True), expected.detach())


class AddsOtherwise(Block):
    """Which of the adds of train mode is the one of eval mode, nothing tells."""

    def forward(self, x):
        y = self.a(x)
        if self.training:
            return torch.relu(y * 2 + x * 3) + (y + y.neg())
        return torch.relu(y + x).sqrt()


def test_a_value_that_train_mode_computes_in_another_way_is_refused():
    with pytest.raises(InjectError, match="in train mode which value is add cannot be told"):
        pair(AddsOtherwise, "after AddsOtherwise.add")


class ShrinksInTraining(Block):
    def __init__(self):
        super().__init__()
        self.down = Halves()

    def forward(self, x):
        y = self.a(x)
        return self.b(y) + (self.down(x).repeat(1, 1, 2, 2) if self.training else self.down(x))


class Halves(Block):
    def forward(self, x):
        return x[:, :, ::2, ::2] if self.training else x


def test_children_that_return_another_shape_in_train_mode():
    plain, ours = pair(ShrinksInTraining, "after ShrinksInTraining.a")
    assert injected(ours)[0].means == "forward"
    for training in (False, True):
        with hooked(plain, ["a"], 1e-4, simam):
            assert same_bits(run(ours, training=training), run(plain, training=training))


class ReadsInTraining(Block):
    def __init__(self):
        super().__init__()
        self.scaled = False

    def forward(self, x):
        y = self.a(x)
        if self.training and self.scaled:
            y = y * 3
        return self.b(y)


def test_what_only_train_mode_reads_is_checked():
    plain, ours = pair(ReadsInTraining, "after ReadsInTraining.a")
    plain.scaled = ours.scaled = True
    with pytest.raises(InjectError, match="attribute scaled differs"):
        run(ours, training=True)
    with bypass(ours):
        assert same_bits(run(ours), run(plain))


# Methods that forward calls, and others too.


class HasParts(Block):
    """As timm's backbones: features and head are methods of their own."""

    def __init__(self):
        super().__init__()
        self.head = conv()

    def forward_features(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward_head(self, x, scale: bool = False):
        return self.head(x) * 2 if scale else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("site", ["a", "relu[1]", "b", "relu[2]", "head", "output"])
def test_parts_are_attended_as_the_whole(site):
    plain, ours = pair(HasParts, f"after HasParts.{site}")
    whole = ours.forward_head(ours.forward_features(X))
    assert same_bits(simam(whole) if site == "output" else whole, ours(X))
    assert not same_bits(run(ours), run(plain))
    eject(ours)
    assert same_bits(ours.forward_features(X), plain.forward_features(X))
    assert same_bits(run(ours), run(plain))


def test_a_place_before_a_child_of_another_part():
    plain, ours = pair(HasParts, "before HasParts.head")
    assert same_bits(ours.forward_features(X), plain.forward_features(X))
    assert same_bits(ours.forward_head(ours.forward_features(X)), ours(X))
    assert same_bits(ours(X), plain.head(simam(plain.forward_features(X))))


def test_parts_without_a_site_stay_as_they_are():
    plain, ours = pair(HasParts, "after HasParts.a")
    x = plain.forward_features(X)
    assert same_bits(ours.forward_head(x, scale=True), plain.forward_head(x, scale=True))


class RunsPartTwice(Block):
    def forward_once(self, x):
        return self.b(self.a(x))

    def forward(self, x):
        return self.forward_once(x) - self.forward_once(-x)


def test_a_part_that_runs_twice_is_refused_and_noted():
    _, ours = pair(RunsPartTwice, "after RunsPartTwice.a[1]")
    assert "forward_once is refused" in injected(ours)[0].note
    with pytest.raises(InjectError, match="runs it 2 times"):
        ours.forward_once(X)


def test_the_parts_of_a_timm_network():
    model = timm.create_model("resnet18", pretrained=False).eval()
    x = torch.rand(1, 3, 64, 64)
    plain = copy.deepcopy(model)
    inject(model, {"rules": [{"path": "act1", "after": "output"}]}, example_inputs=x)
    for ours in (model, pickle.loads(pickle.dumps(model))):
        with hooked(plain, ["act1"], 1e-4, simam), torch.no_grad():
            assert same_bits(ours.forward_features(x), plain.forward_features(x))
            assert same_bits(ours.forward_head(ours.forward_features(x)), plain(x))
            assert same_bits(ours(x), plain(x))
    eject(model)
    assert same_bits(model.forward_features(x), plain.forward_features(x))


# Decorators that change the signature.


def with_scale(forward):
    @functools.wraps(forward)
    def call(self, x):
        return forward(self, x, 2.0)

    return call


def with_scale_behind(forward):
    @functools.wraps(forward)
    def call(self, *args, **kwargs):
        return forward(self, *args, 2.0, **kwargs)

    return call


class Scaled(Block):
    @with_scale
    def forward(self, x, scale):
        return self.b(self.a(x)) * scale


class ScaledBehind(Block):
    @with_scale_behind
    def forward(self, x, scale):
        return self.b(self.a(x)) * scale


@pytest.mark.parametrize("block", [Scaled, ScaledBehind])
@pytest.mark.parametrize("site", ["a", "output"])
def test_a_decorator_that_adds_an_argument(block, site):
    plain, ours = pair(block, f"after {block.__name__}.{site}")
    with hooked(plain, ["a" if site == "a" else ""], 1e-4, simam):
        assert same_bits(run(ours), run(plain))
    if site == "output":
        assert inspect.signature(ours.forward) == inspect.signature(plain.forward)
