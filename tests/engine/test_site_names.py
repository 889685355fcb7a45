"""A path names one value: children and operations of one name, one child called from two forwards."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from simam_inject import inject, injected, plan, simam
from simam_inject.errors import NoMatchError
from tests.engine.blocks import Block, Net, build, conv, run
from tests.engine.networks import image as photo
from tests.engine.networks import resnet18
from tests.engine.targets import image, rule
from tests.oracle import E_LAMBDA, assert_attended, hooked, same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


def paths(block, name):
    model = inject(Net(block).eval(), f"after {type(block).__name__}.{name}", example_inputs=X)
    return [insertion.path for insertion in injected(model)]


class FunctionBeforeChild(Block):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        y = F.relu(self.relu(F.relu(self.a(x)) - 0.1) - 0.1)
        return self.b(self.relu(y - 0.1))


@pytest.mark.parametrize(
    ("name", "path"),
    [("relu[1]", "relu"), ("relu[2]", "relu[2]"), ("relu_op[1]", "relu_op"), ("relu_op[2]", "relu_op[2]")],
)
def test_a_child_and_a_function_of_one_name_are_counted_apart(name, path):
    assert paths(FunctionBeforeChild(), name) == [f"block.{path}"]


class ChildBlockNamedAsAnOperation(Block):
    def __init__(self):
        super().__init__()
        self.add = nn.Sequential(conv(), nn.ReLU())

    def forward(self, x):
        return self.b(self.add(self.a(x) + 1.0))


@pytest.mark.parametrize("name", ["add", "add_op", "add.0"])
def test_a_child_block_that_is_named_as_an_operation(name):
    assert paths(ChildBlockNamedAsAnOperation(), name) == [f"block.{name}"]


class ParameterNamedAsAChild(Block):
    def forward(self, a):
        return self.b(self.a(a) + a)


@pytest.mark.parametrize("name", ["a", "a_input"])
def test_a_parameter_that_is_named_as_a_child(name):
    assert paths(ParameterNamedAsAChild(), name) == [f"block.{name}"]


class CallsInside(Block):
    """Calls a block, and the block's own convolution once more."""

    def __init__(self):
        super().__init__()
        self.inner = Block()

    def forward(self, x):
        y = self.a(x)
        return self.b(self.inner(y) + self.inner.a(2 * y))


def test_a_child_that_two_forwards_call_is_attended_in_both():
    plain = Net(CallsInside()).eval()
    ours = inject(copy.deepcopy(plain), "after callsinside.inner.a", example_inputs=X)
    with hooked(plain, ["block.inner.a"], 1e-4, simam):
        assert same_bits(ours(X), plain(X))
    assert paths(CallsInside(), "inner.b") == ["block.inner.b"]


@pytest.mark.parametrize("name", ["a", "relu"])
def test_an_example_without_a_batch_dimension(name):
    model = Net(nn.Sequential())
    model.block.add_module("a", conv())
    model.block.add_module("relu", nn.ReLU())
    model.block.add_module("b", conv())
    with pytest.raises(NoMatchError, match=r"no batch dimension: .*\(4, 8, 8\)"):
        plan(model, f"after sequential.{name}", example_inputs=X[0])
    assert plan(model, f"after sequential.{name}", example_inputs=X[:1]).insertions


class Functional(Block):
    def forward(self, x):
        return F.conv2d(F.conv2d(x, self.a.weight, padding=1), self.b.weight, padding=1)


def test_a_functional_convolution_without_a_batch_dimension():
    with pytest.raises(NoMatchError, match="has no batch dimension"):
        plan(Functional(), {"rules": [{"path": "conv2d", "after": "output"}]}, example_inputs=X[0].new_ones(4, 8, 8))


class CalledTwice(Block):
    def __init__(self):
        super().__init__()
        self.h = conv()

    def forward(self, x):
        return self.h(self.a(x)) + self.h(self.b(x))


class CalledThrice(CalledTwice):
    def forward(self, x):
        return self.h(self.a(x)) + self.h(self.b(x)) * self.h(x)


class CalledBySelf(CalledTwice):
    def forward(self, x):
        return self.h(self.h(self.a(x)).relu())


@pytest.mark.parametrize(("factory", "others"), [(CalledTwice, 1), (CalledThrice, 2), (CalledBySelf, 1)])
@pytest.mark.parametrize("rule", [{"before": "input"}, {"after": "output"}])
def test_further_calls_of_a_module_are_skips_with_a_reason(factory, others, rule):
    found = plan(Net(factory()).eval(), {"rules": [{"path": "block.h", **rule}]}, example_inputs=X)
    assert len(found.insertions) == 1
    skips = {skip.path: skip.reason for skip in found.skips if "is another call of block.h" in skip.reason}
    assert sorted(skips) == [f"block.h[{count + 2}]" for count in range(others)]
    both = plan(Net(factory()).eval(), {"rules": [{"path": "block.h*", **rule}]}, example_inputs=X)
    assert not [skip for skip in both.skips if "is another call" in skip.reason]


class Compares(nn.Module):
    """A siamese network: two results of one block, apart or in a list."""

    def __init__(self, head):
        super().__init__()
        self.shared, self.head = nn.Sequential(conv(3), nn.ReLU()), head

    def forward(self, x):
        return self.head(self.shared(x), self.shared(-x))


class Joins(nn.Module):
    def forward(self, *maps):
        return torch.cat(maps, 1)


def test_before_a_block_that_reads_two_results_of_one_block():
    with pytest.raises(NoMatchError, match="head reads what several calls of shared return: use after"):
        plan(Compares(Joins()), {"rules": [{"path": "head", "before": "input"}]}, example_inputs=X[:, :3])


class SharesItsActivation(nn.Module):
    """One activation in a container and beside it, as in networks for restoration."""

    def __init__(self):
        super().__init__()
        act = nn.LeakyReLU(0.2)
        self.body, self.b, self.act = nn.Sequential(conv(), act, conv()), conv(), act

    def forward(self, x):
        return self.act(self.b(self.body(x))) + x


@pytest.mark.parametrize("rule", [{"after": "act"}, {"before": "residual"}])
def test_a_call_beside_the_container_that_shares_the_module(rule):
    plain = Net(SharesItsActivation()).eval()
    ours = inject(copy.deepcopy(plain), {"rules": [{"block": "SharesItsActivation", **rule}]}, example_inputs=X)
    block, stem = plain.block, plain.stem(X)
    assert [insertion.path for insertion in injected(ours)] == ["block.act"]
    assert same_bits(ours(X), simam(block.act(block.b(block.body(stem)))) + stem)


class RunsABlockTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Block()

    def forward(self, x):
        return self.inner(self.inner(x).tanh()) + x


def test_a_branch_that_ends_in_another_call_of_a_block():
    with pytest.raises(NoMatchError, match=r"add .*another call of block\.inner"):
        plan(Net(RunsABlockTwice()), "before RunsABlockTwice.residual", example_inputs=X)


class CallsAModuleOfItsParent(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.c, self.parent = conv(), [parent]

    def forward(self, x):
        return self.parent[0].other(self.c(x)) * 2.0


class LeafThatCallsAModuleOfItsParent(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent = [parent]

    def forward(self, x):
        return self.parent[0].other(x) * 2.0


class Lends(nn.Module):
    """Has a convolution that another module calls."""

    def __init__(self, kind):
        super().__init__()
        self.other, self.block = conv(), kind(self)

    def forward(self, x):
        return self.block(x).relu()


@pytest.mark.parametrize(
    ("rule", "places"),
    [
        ({"path": "block.other", "after": "output"}, ["block.other"]),
        ({"path": "block.other", "before": "input"}, ["block.block.c"]),
        ({"path": "block.*", "after": "conv2d"}, ["block.other", "block.block.c"]),
        ({"pattern": "conv2d", "path": "block"}, ["block.other", "block.block.c"]),
    ],
)
def test_a_module_that_another_one_than_its_parent_calls_has_its_own_path(rule, places):
    plain = Net(Lends(CallsAModuleOfItsParent)).eval()
    ours = inject(copy.deepcopy(plain), {"rules": [rule]}, example_inputs=X)
    assert [insertion.path for insertion in injected(ours)] == places
    with hooked(plain, places, 1e-4, simam):
        assert same_bits(ours(X), plain(X))


def test_a_module_that_a_leaf_calls_is_skipped_with_the_true_reason():
    rule = {"path": "block.other", "after": "output"}
    with pytest.raises(NoMatchError, match=r"called by block\.block"):
        plan(Net(Lends(LeafThatCallsAModuleOfItsParent)), {"rules": [rule]}, example_inputs=X)


class ReturnsNested(Block):
    def forward(self, x):
        y = self.a(x) * 2.0
        return {"maps": [y, self.b(y)]}


def test_a_value_deep_inside_the_output_is_attended_under_its_own_name():
    everything = {"rules": [{"path": "*", "after": "output"}]}
    found = plan(ReturnsNested(), everything, example_inputs=torch.rand(2, 4, 8, 8))
    assert [insertion.path for insertion in found.insertions] == ["a", "mul", "b"]


def test_the_first_of_several_by_its_number():
    class Multiplies(Block):
        def forward(self, x):
            return self.b(self.a(x) * 2.0) * 3.0

    def found(**rule):
        recipe = {"rules": [{**rule, "after": "output"}]}
        return [one.path for one in plan(Net(Multiplies()), recipe, example_inputs=X).insertions]

    assert found(path="block.mul[1]") == found(path="block.mul") == ["block.mul"]
    assert found(path="block.[am]*", exclude="block.mul[1]") == ["block.a", "block.mul[2]"]
    assert found(path="block.[am]*", exclude="block.mul") == ["block.a"]


def test_a_child_named_as_a_value_of_the_block():
    class Layer(Block):
        def __init__(self):
            super().__init__()
            self.output = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.output(self.a(x)) + x

    def found(selector):
        made = plan(Net(Layer()), selector, example_inputs=X)
        return [one.path for one in made.insertions], [skip.reason for skip in made.skips]

    assert found("after layer.{output}") == (["block.output"], [])
    assert found("after layer.output") == (["block"], [])


class Adds(Block):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.b(self.a(x) + x) + x)


class Cats(Adds):
    def forward(self, x):
        return self.act(torch.cat([self.a(x)[:, :2], x[:, 2:]], 1))


def test_of_two_operations_the_first_is_listed_under_its_bare_name():
    rules = [{"block": "Adds", "after": "add[1]"}, {"path": "block.add", "after": "output"}]
    for one in rules:
        (found,) = plan(Net(Adds()), {"rules": [one]}, example_inputs=X).insertions
        assert found.path == "block.add"


def test_the_name_of_an_operation_is_no_misspelt_child():
    net = nn.Sequential(conv(3, 4), Adds(), Cats())
    with pytest.raises(NoMatchError, match=r"(?m)^  1: has no child cat; it has [^;]*$"):
        plan(net, {"rules": [{"block": "Adds", "after": "cat", "where": {"channels": 9}}]}, example_inputs=X)


def test_an_operation_inside_a_module_without_children():
    rule = {"path": "block.a", "after": "relu"}
    with pytest.raises(NoMatchError, match=r"block\.a: has no children, and so no relu"):
        plan(Net(Block()), {"rules": [rule]}, example_inputs=X)


def test_children_in_a_list_are_the_ones_that_a_message_names():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([Block(), Block()])

        def forward(self, x):
            return self.stages[1](self.stages[0](x))

    with pytest.raises(NoMatchError, match=r"no child shortcut; it has stages\.0, stages\.1$"):
        plan(Net(Encoder()), "after encoder.shortcut", example_inputs=X)


# One hook for every call of a module


class Levels(nn.Module):
    """A head for all maps of a pyramid, which it calls one by one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, maps):
        return [self.conv(x).relu() for x in maps]


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.head = Levels()

    def forward(self, x):
        x = self.stem(x)
        return self.head([x, F.max_pool2d(x, 2), F.max_pool2d(x, 4)])


class Twice(nn.Module):
    """One module on two branches, as `drop_path` is in many transformers."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = nn.Conv2d(3, 3, 3, padding=1)
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x):
        x = x + self.drop(self.one(x))
        return x + self.drop(self.two(x))


@pytest.mark.parametrize(
    ("network", "rule", "place"),
    [
        (Pyramid, {"path": "head", "after": {"op": "conv"}}, "head.conv"),
        (Twice, {"block": "Twice", "before": "residual"}, "drop"),
    ],
)
def test_one_hook_attends_every_call_of_a_module(network, rule, place):
    recipe = {"e_lambda": E_LAMBDA, "rules": [rule]}
    x, stock = image(1, 3, 16, 16), build(network)
    found = plan(stock, recipe, example_inputs=x)
    (only,) = found.insertions
    assert (only.path, only.edit.module) == (place, place)
    assert only.runs == len(found.skips) + 1
    assert {skip.reason for skip in found.skips} == {f"is covered by the SimAM on {place}"}
    model = inject(copy.deepcopy(stock), recipe, example_inputs=x)
    assert_attended(run(model, x), stock, [place], x)
    assert {skip.reason for skip in plan(model, recipe, example_inputs=x).skips} == {"already has SimAM"}


# `torch.nn.utils.parametrize` gives a module children that compute its weight


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1, dtype=torch.float64)

    def forward(self, weight):
        return weight * (1.5 + self.scale(weight.new_ones(1)))


def scaled(module):
    return parametrize.register_parametrization(module, "weight", Scaled())


PARAMETRIZATIONS = {
    "spectral": parametrizations.spectral_norm,
    "weight": parametrizations.weight_norm,
    "own": scaled,
}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_a_parametrized_convolution_is_named_as_the_convolution(name):
    ours, plain = resnet18(), resnet18()  # copies would share the class that remove_parametrizations changes
    for model in (ours, plain):
        torch.manual_seed(0)
        for module in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
            PARAMETRIZATIONS[name](module)
    expected = [f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in (0, 1)]  # layer4 has one position
    inject(ours, "paper", e_lambda=E_LAMBDA, example_inputs=photo())
    assert [insertion.path for insertion in injected(ours)] == expected
    assert_attended(run(ours, photo()), plain, expected, photo())
    for model in (ours, plain):
        parametrize.remove_parametrizations(model.layer1[0].conv2, "weight")
    assert_attended(run(ours, photo()), plain, expected, photo())


def test_a_block_with_a_parametrized_weight_of_its_own():
    block = Block()
    block.weight = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(block, "weight", nn.Sequential(nn.Identity(), nn.Softplus()))
    assert paths(block, "b") == ["block.b"]


class Parametrizations(Block):
    def __init__(self):
        super().__init__()
        self.parametrizations = nn.ModuleDict({"first": self.a, "second": self.b})

    def forward(self, x):
        return self.parametrizations["second"](self.parametrizations["first"](x))


def test_children_that_only_have_the_name_of_parametrizations():
    block = Parametrizations()
    del block.a, block.b
    assert paths(block, "parametrizations.first") == ["block.parametrizations.first"]


class SharesActivation(nn.Module):
    """As ultralytics' Conv: one activation module for the whole network, under a name in each block."""

    def __init__(self, activation):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), activation

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


def test_a_module_with_several_names_is_found_by_the_blocks_that_run_it():
    activation = nn.SiLU()
    stock = build(lambda: nn.Sequential(SharesActivation(activation), SharesActivation(activation), nn.Conv2d(4, 4, 1)))
    x = torch.rand(2, 4, 16, 16).double()
    ours = inject(copy.deepcopy(stock), rule(pattern="conv2d > batch_norm > act"), example_inputs=x)
    assert [insertion.path for insertion in injected(ours)] == ["0.act", "1.act"]
    assert_attended(run(ours, x), stock, ["0", "1"], x)


class SharesInSequentials(nn.Module):
    """One activation in two Sequentials, and under a name of its own before both."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.a, self.b = nn.Sequential(conv(), self.act), nn.Sequential(conv(), self.act)

    def forward(self, x):
        return self.b(self.a(x))


def test_the_first_call_of_a_module_that_runs_in_two_sequentials():
    stock = build(SharesInSequentials)
    x = torch.rand(2, 4, 16, 16).double()
    ours = inject(copy.deepcopy(stock), rule(path="act", after="output"), example_inputs=x)
    assert_attended(run(ours, x), stock, ["a"], x)
