"""Forwards of every form: those that list their children, that train mode changes, of several methods, decorated."""

import copy
import functools
import inspect
import pickle

import pytest
import timm
import torch
from torch import nn

from simam_inject import bypass, eject, inject, injected, simam
from simam_inject.errors import InjectError, NoMatchError
from simam_inject.planning.insertions import Output, Rewritten
from tests.engine.blocks import Block, conv
from tests.oracle import hooked, same_bits

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))


def pair(block, recipe, **options):
    """(plain, injected) with the same weights."""
    torch.manual_seed(4)
    plain = block().eval()
    return plain, inject(copy.deepcopy(plain), recipe, example_inputs=X, **options)


def run(model, x=X, *, training=False):
    torch.manual_seed(5)
    with torch.no_grad():
        return model.train(training)(x)


def assert_like_hooks(plain, ours, places):
    for training in (False, True):
        with hooked(plain, places, 1e-4, simam):
            expected = run(plain, training=training)
        assert same_bits(run(ours, training=training), expected)
        assert not same_bits(expected, run(plain, training=training))


# A forward that goes through its own children would meet a SimAM among them


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


class ListsAndAdds(Block):
    """What it returns is no child's output."""

    def forward(self, x):
        for child in self.children():
            x = x + child(x)
        return x


class IsIterated(Block):
    def __iter__(self):
        return iter(self._modules.values())

    def forward(self, x):
        for child in self:
            x = x + child(x)
        return x


class HasLength(Block):
    def __len__(self):
        return len(self._modules)

    def forward(self, x):
        return self.b(self.a(x)) * len(self)


class DictBlock(nn.ModuleDict):
    """Runs its children by name, as DenseNet's blocks do."""

    def forward(self, x):
        for name, child in self.items():
            x = x + child(x) if name else x
        return x


class ListBlock(nn.ModuleList):
    def forward(self, x):
        for child in self:
            x = x + child(x)
        return x


def made(block):
    children = {"a": conv(), "b": conv()}
    if block is DictBlock:
        return block(children)
    if block is ListBlock:
        return block(children.values())
    return block(*children.values()) if block is ListsTable else block()


class Around(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block, self.act = made(block), nn.ReLU()

    def forward(self, x):
        return self.act(self.block(x))


LISTS = [ListsTable, ListsChildren, ListsThroughHelper, ListsAndAdds, IsIterated, HasLength, DictBlock, ListBlock]


@pytest.mark.parametrize("block", LISTS)
def test_a_block_that_lists_its_children_is_attended_once(block):
    plain, ours = pair(lambda: Around(block), f"after {block.__name__}")
    assert_like_hooks(plain, ours, ["block"])
    assert len(ours.block._modules) == 2
    assert all(same_bits(run(twin), run(ours)) for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))))
    assert same_bits(run(eject(ours)), run(plain))


@pytest.mark.parametrize("block", [ListsAndAdds, IsIterated, HasLength, DictBlock, ListBlock])
def test_a_block_that_lists_its_children_and_is_the_model(block):
    with pytest.raises(NoMatchError, match=r"runs all of its children|iterates over its children"):
        inject(made(block), f"after {block.__name__}", example_inputs=X)


# Containers


RULES = {"rules": [{"path": ["0", "2"], "after": "output"}]}


def sequential():
    torch.manual_seed(1)
    return nn.Sequential(conv(), nn.ReLU(), conv(), nn.BatchNorm2d(4)).eval()


def test_a_sequential_is_as_before():
    plain, model = sequential(), inject(sequential(), RULES, example_inputs=X)
    assert_like_hooks(plain, model, ["0", "2"])
    assert len(model) == 4
    assert [type(child) for child in model] == [type(child) for child in plain]
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3"]
    with hooked(plain, ["0", "2"], 1e-4, simam):
        for cut in (slice(0, 1), slice(0, 2), slice(None), slice(0, 3)):
            assert same_bits(model[cut](X), plain[cut](X)), cut
        assert same_bits(model[2:](model[:2](X)), plain(X))


CHANGES = {
    "set": lambda model: model.__setitem__(1, nn.Sigmoid()),
    "append": lambda model: model.append(nn.ReLU()),
    "insert": lambda model: model.insert(0, nn.ReLU()),
    "extend": lambda model: model.extend([nn.ReLU()]),
    "pop": lambda model: model.pop(1),
    "delete": lambda model: model.__delitem__(1),
    "add": lambda model: model.__iadd__(nn.Sequential(nn.ReLU())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_container_is_changed(change):
    """The attention goes with the modules that hold it."""
    plain, model = sequential(), inject(sequential(), RULES, example_inputs=X, verify=False)
    attended = [plain[0], plain[2]]
    for each in (plain, model):
        CHANGES[change](each)
    places = [name for name, module in plain.named_children() if any(module is one for one in attended)]
    with hooked(plain, places, 1e-4, simam):
        expected = plain(X)
    assert same_bits(model(X), expected)
    assert not same_bits(expected, plain(X))


class Iterates(nn.Module):
    """Lists, counts and slices its containers instead of calling them."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(), nn.ReLU(), conv())
        self.heads = nn.ModuleDict({"one": conv(), "two": conv()})

    def forward(self, x):
        for layer in self.features:
            x = layer(x)
        assert len(self.features) == 3
        return sum(head(x) for head in self.heads.values())


def test_who_iterates_over_its_containers():
    recipe = {"rules": [{"block": "iterates", "after": {"op": "conv2d"}}]}
    plain, ours = pair(Iterates, recipe)
    assert [insertion.path for insertion in injected(ours)] == ["features.0", "features.2", "heads.one", "heads.two"]
    assert_like_hooks(plain, ours, ["features.0", "features.2", "heads.one", "heads.two"])


class CallsAndSlices(Iterates):
    def forward(self, x):
        return self.features(x) + self.features[:2](x)


def test_a_container_that_is_called_and_sliced():
    plain, ours = pair(CallsAndSlices, {"rules": [{"path": "features.2", "after": "output"}]})
    assert_like_hooks(plain, ours, ["features.2"])


class Stage(nn.Sequential):
    def forward(self, x):
        for index, layer in enumerate(self):
            x = layer(x) + (x if index else 0)
        return x


def test_children_of_a_sequential_with_a_forward_of_its_own():
    plain, ours = pair(lambda: Stage(conv(), conv(), conv()), {"rules": [{"path": ["0", "1"], "after": "output"}]})
    assert_like_hooks(plain, ours, ["0", "1"])


# One call of a child that runs more than once


class Twice(Block):
    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, x):
        y = self.act(self.a(x)) - 0.1
        return (self.act(y * 2) - self.b(y)).sin()


@pytest.mark.parametrize("call", [1, 2])
def test_one_of_two_calls_of_a_child(call):
    plain, ours = pair(Twice, f"after twice.act[{call}]")
    assert injected(ours)[0].edit == Rewritten("", "act" if call == 1 else "act[2]")
    attend = [simam if call == one else (lambda x: x) for one in (1, 2)]
    y = attend[0](plain.act(plain.a(X))) - 0.1
    expected = (attend[1](plain.act(y * 2)) - plain.b(y)).sin()
    assert same_bits(run(ours), expected.detach())
    with bypass(ours):
        assert same_bits(run(ours), run(plain))
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert same_bits(run(twin), expected.detach())
    assert same_bits(run(eject(ours)), run(plain))


# Train mode


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


class Halves(Block):
    def forward(self, x):
        return x[:, :, ::2, ::2] if self.training else x


class ShrinksInTraining(Block):
    def __init__(self):
        super().__init__()
        self.down = Halves()

    def forward(self, x):
        y = self.a(x)
        return self.b(y) + (self.down(x).repeat(1, 1, 2, 2) if self.training else self.down(x))


def test_children_that_return_another_shape_in_train_mode():
    plain, ours = pair(ShrinksInTraining, "after ShrinksInTraining.a")
    assert_like_hooks(plain, ours, ["a"])


# Methods that forward calls, and others too


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


@pytest.mark.parametrize("site", ["a", "relu[1]", "b", "relu[2]", "head"])
def test_parts_are_attended_as_the_whole(site):
    plain, ours = pair(HasParts, f"after HasParts.{site}", verify=False)
    assert same_bits(ours.forward_head(ours.forward_features(X)), ours(X))
    assert not same_bits(run(ours), run(plain))
    eject(ours)
    assert same_bits(ours.forward_features(X), plain.forward_features(X))
    assert same_bits(run(ours), run(plain))


def test_what_a_model_returns_is_attended_when_it_is_called():
    """`forward_features` and `forward_head` of the model compute what they did; document of `inject`."""
    plain, ours = pair(HasParts, "after HasParts")
    assert same_bits(run(ours), simam(run(plain)))
    assert same_bits(ours.forward_head(ours.forward_features(X)), plain(X))


def test_a_place_before_a_child_of_another_part():
    plain, ours = pair(HasParts, "before HasParts.head")
    assert same_bits(ours.forward_features(X), plain.forward_features(X))
    assert same_bits(ours.forward_head(ours.forward_features(X)), ours(X))
    assert same_bits(ours(X), plain.head(simam(plain.forward_features(X))))


class RunsPartTwice(Block):
    def forward_once(self, x):
        return self.b(self.a(x))

    def forward(self, x):
        return self.forward_once(x) - self.forward_once(-x)


def test_a_part_that_runs_twice():
    """The two calls stand at one place of the source."""
    with pytest.raises(NoMatchError, match="computed in a loop"):
        pair(RunsPartTwice, "after RunsPartTwice.a[1]")


class Mirrored(Block):
    """The average over an image and its mirror image: the forward calls the model itself."""

    def forward(self, x, *, mirrored=True):
        if mirrored:
            return self(x, mirrored=False) + self(x.flip(-1), mirrored=False).flip(-1)
        return self.b(self.a(x))


class Again(Block):
    def forward(self, x, times=2):
        y = self.a(x)
        return self.b(y) if times == 0 else self(y.tanh(), times - 1)


@pytest.mark.parametrize("block", [Mirrored, Again])
def test_a_model_that_calls_itself(block):
    plain, ours = pair(block, {"rules": [{"path": "a", "after": "output"}]})
    assert_like_hooks(plain, ours, ["a"])


def test_the_output_of_a_block_that_returns_what_it_returned():
    """A hook would attend it once for each of the calls."""
    with pytest.raises(InjectError):
        inject(nn.Sequential(Again()), {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X)


def test_the_parts_of_a_timm_network():
    model = timm.create_model("test_resnet", pretrained=False).eval()
    x = torch.rand(1, 3, 64, 64)
    plain = copy.deepcopy(model)
    inject(model, {"rules": [{"path": "act1", "after": "output"}]}, example_inputs=x, verify=False)
    for ours in (model, pickle.loads(pickle.dumps(model))):
        with hooked(plain, ["act1"], 1e-4, simam), torch.no_grad():
            assert same_bits(ours.forward_features(x), plain.forward_features(x))
            assert same_bits(ours.forward_head(ours.forward_features(x)), plain(x))
            assert same_bits(ours(x), plain(x))
    assert same_bits(eject(model).forward_features(x), plain.forward_features(x))


class Splits(Block):
    """The same computation written twice, as ultralytics' C2f has it for exporters."""

    def forward(self, x):
        return self.b(torch.cat(list(self.a(x).chunk(2, 1)), 1))

    def forward_split(self, x):
        y = self.a(x).split((2, 2), 1)
        return self.b(torch.cat([y[0], y[1]], 1))


@pytest.mark.parametrize(("site", "place"), [("a", "a"), ("output", "")])
def test_another_method_is_put_in_the_place_of_forward(site, place):
    plain, ours = pair(Splits, f"after splits.{site}")
    for model in (plain, ours):
        model.forward = model.forward_split
    assert_like_hooks(plain, ours, [place])


# Decorators that change the signature


def with_scale(forward):
    @functools.wraps(forward)
    def call(self, *args, **kwargs):
        return forward(self, *args, 2.0, **kwargs)

    return call


class Scaled(Block):
    @with_scale
    def forward(self, x, scale):
        y = self.a(x) * scale
        return self.b(y) + y


@pytest.mark.parametrize(("site", "place"), [("a", "a"), ("output", "")])
def test_a_decorator_that_adds_an_argument(site, place):
    plain, ours = pair(Scaled, f"after scaled.{site}")
    assert injected(ours)[0].edit == Output(place)
    assert_like_hooks(plain, ours, [place])
    assert inspect.signature(ours.forward) == inspect.signature(plain.forward)


def test_an_expression_of_a_decorated_forward():
    with pytest.raises(NoMatchError, match=r"not a plain method|source of its forward is not available"):
        pair(Scaled, "after scaled.mul")


class Reordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv(4, 4)

    def forward(self, x, y):
        return self.c(x) + y


class Caller(nn.Module):
    def __init__(self, by_name=False):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.k, self.by_name = conv(), Reordered(), by_name

    def forward(self, x):
        x = self.stem(x)
        t = x * 2 + x
        return self.k(y=t, x=x * 3) if self.by_name else self.k(t, x * 3)


@pytest.mark.parametrize("by_name", [False, True])
def test_arguments_are_counted_by_the_forward_that_stands_on_the_instance(by_name):
    model = Caller().eval()
    model.k.forward = lambda y, x: model.k.c(y) + x
    inject(model, {"rules": [{"path": "k", "before": "input", "exclude": ["mul*"]}]}, example_inputs=X)
    stock = Caller().eval()
    model.by_name = by_name
    x = stock.stem(X)
    t = simam(x * 2 + x)
    assert torch.allclose(model(X), stock.k.c(t) + x * 3, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(X), stock.k.c(x * 2 + x) + x * 3, rtol=1e-2)
