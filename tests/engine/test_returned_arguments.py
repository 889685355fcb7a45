"""A module that returns its argument, in some mode or always: its result is read, returned and attended as such."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject import inject, injected, plan
from simam_inject.errors import NoMatchError
from tests.engine.blocks import build, run
from tests.engine.targets import conv, image, rule
from tests.oracle import assert_attended, assert_right, hooked


class Passer(nn.Module):
    """A block that is off."""

    def __init__(self):
        super().__init__()
        self.conv, self.on = conv(), False

    def forward(self, x):
        return self.conv(x) if self.on else x


class Getter(nn.ModuleDict):
    def __init__(self):
        super().__init__({"first": conv(), "passer": Passer(), "last": conv()})

    def forward(self, x):
        found = {}
        for name, child in self.items():
            x = found[name] = child(x)
        return [found["first"], found["last"]]


class Got(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.c, self.d = Getter(), conv(), conv()

    def forward(self, x):
        first, last = self.body(x)
        return self.c(first) + self.d(last)


class Softened(nn.Module):
    """An operation reads a value that a module passes on to others."""

    def __init__(self, returns):
        super().__init__()
        self.a, self.passer, self.d, self.returns = conv(), Passer(), conv(), returns

    def forward(self, x):
        y = self.a(x)
        z = self.passer(y)
        return (F.softmax(y, 1), z) if self.returns else F.softmax(y, 1) + self.d(z)


class List(nn.ModuleList):
    """Reads what it is given, and returns it too."""

    def __init__(self, passer):
        super().__init__([Passer(), conv()] if passer else [conv()])

    def forward(self, x):
        return [child(x) for child in self] + [x]


class Keeper(nn.Module):
    def __init__(self, kept):
        super().__init__()
        self.conv, self.kept = conv(), kept

    def forward(self, x, y):
        self.last = y
        return [self.conv(x), self.last if self.kept else y]


class Read(nn.Module):
    def __init__(self, reader, times):
        super().__init__()
        self.a, self.reader, self.c, self.d, self.times = conv(), reader, conv(), conv(), times

    def forward(self, x):
        y = self.a(x)
        first, *_, second = self.reader(*[y] * self.times)
        return self.c(first) + self.d(second) + y


REFUSED = {
    "returned by a container": (Got, rule(path="body:0", after="output"), "body reads it before returning it"),
    "read by others": (lambda: Softened(False), rule(path="softmax", before="input"), "other operations read the same"),
    "returned": (lambda: Softened(True), rule(path="softmax", before="input"), "other operations read the same"),
    "returned by the reader": (lambda: Read(List(False), 1), rule(path="reader", before="input"), "which runs all of"),
    "passed on by the reader": (lambda: Read(List(True), 1), rule(path="reader", before="input"), "which runs all of"),
    "given twice": (lambda: Read(Keeper(False), 2), rule(path="reader", before="input"), "receives it more than once"),
    "kept": (lambda: Read(Keeper(True), 2), rule(path="reader", before="input"), "receives it more than once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_hook_can_attend_for_those_alone_that_the_rule_names(name):
    factory, recipe, reason = REFUSED[name]
    with pytest.raises(NoMatchError, match=reason):
        plan(build(factory), recipe, example_inputs=image())


class Twice(nn.Module):
    """The first block's result goes through the second, and around it."""

    def __init__(self, second):
        super().__init__()
        self.first, self.second, self.c = nn.Sequential(conv(), nn.BatchNorm2d(6)), second, conv()

    def forward(self, x):
        y = self.first(x)
        return self.c(self.second(y)) + y


@pytest.mark.parametrize("second", [nn.Dropout2d(0.4), nn.Identity()])
@pytest.mark.parametrize("training", [False, True])
def test_the_block_that_computes_a_value_is_attended_not_one_that_passes_it_on(second, training):
    stock = build(lambda: Twice(nn.Sequential(second)))
    ours = inject(copy.deepcopy(stock), rule(block="Sequential", after="output"), example_inputs=image())
    assert [insertion.path for insertion in injected(ours)] == ["first"]
    for model in (ours, stock):
        model.train(training)
    torch.manual_seed(1)
    found = run(ours, image())
    outputs = []
    for places in ([], ["first"]):
        torch.manual_seed(1)
        with torch.no_grad(), hooked(stock, places):
            outputs.append(stock(image()))
    assert_right(found, outputs[1], outputs[0])


class Writes(nn.Module):
    """The block returns the tensor of its norm, in which it has written."""

    def __init__(self, write):
        super().__init__()
        self.conv, self.bn, self.write = conv(), nn.BatchNorm2d(6), write

    def forward(self, x):
        y = self.bn(self.conv(x))
        self.write(y, x)
        return y


WRITES = {
    "add_": lambda y, x: y.add_(x),
    "relu_": lambda y, _: F.relu_(y),
    "setitem": lambda y, x: y.__setitem__((slice(None), slice(3)), x[:, :3]),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_tensor_is_another_value_after_an_in_place_write(name):
    stock = build(lambda: nn.Sequential(conv(), Writes(WRITES[name]), conv()))
    recipe = rule(block=["Writes", "BatchNorm2d"], after="output")
    ours = inject(copy.deepcopy(stock), recipe, example_inputs=image())
    assert {insertion.path for insertion in injected(ours)} == {"1", "1.bn"}
    assert_attended(run(ours, image()), stock, ["1.bn", "1"], image())


class Passed(nn.Module):
    """An in-place operation writes what an identity returned; the sum reads that as well."""

    def __init__(self, passer):
        super().__init__()
        self.a, self.passer, self.c = conv(), passer, conv()

    def forward(self, x):
        y = self.passer(self.a(x))
        return self.c(F.relu_(y)) + y


@pytest.mark.parametrize("passer", [nn.Identity, nn.Dropout, Passer])
def test_who_reads_what_the_reader_returned_is_no_other_reader(passer):
    stock = build(lambda: Passed(passer()))
    ours = inject(copy.deepcopy(stock), rule(path="passer", before="input"), example_inputs=image())
    assert_attended(run(ours, image()), stock, ["a"], image())


class Shared(nn.Module):
    """One block on maps of two sizes."""

    def __init__(self):
        super().__init__()
        self.b = nn.Sequential(conv(), nn.ReLU())

    def forward(self, x):
        return [self.b(x), self.b(F.max_pool2d(x, 2))]


def test_calls_of_a_block_are_one_site():
    for text in ("b[1]", "b[2]"):
        with pytest.raises(NoMatchError, match="b: runs 2 times in one forward, which are one site"):
            plan(build(Shared), f"after shared.{text}", example_inputs=image())
    with pytest.raises(NoMatchError, match="b: this block has no reduction"):
        plan(build(Shared), rule(path="b", after="output", where={"reduction": 1}), example_inputs=image())
    stock = build(Shared)
    ours = inject(copy.deepcopy(stock), rule(path="b", after="output"), example_inputs=image())
    assert_attended(run(ours, image()), stock, ["b"], image())


class Crops(Shared):
    """One block on two numbers of samples."""

    def forward(self, x):
        return [self.b(x), self.b(x[:1])]


def test_another_number_of_samples_is_no_other_size():
    found = plan(build(Crops), rule(path="b", after="output", where={"reduction": 1}), example_inputs=image())
    assert [insertion.path for insertion in found.insertions] == ["b"]


class Unpacks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x):
        (z,) = map(F.relu, [self.a(x)])
        return self.b(z) + z


def test_an_operation_that_an_assignment_runs_is_skipped():
    with pytest.raises(NoMatchError, match="a variable that is assigned to"):
        plan(build(Unpacks), rule(path="relu", after="output"), example_inputs=image())


def test_what_a_block_returns_of_its_last_dropout_is_one_value():
    stock = build(lambda: nn.Sequential(conv(), nn.Sequential(conv(), nn.BatchNorm2d(6), nn.Dropout(0.5)), conv()))
    ours = inject(copy.deepcopy(stock), rule(path=["1", "1.2"], after="output"), example_inputs=image())
    assert [insertion.path for insertion in injected(ours)] == ["1.2"]
    assert_attended(run(ours, image()), stock, ["1"], image())
    with pytest.raises(NoMatchError, match="already has SimAM"):
        inject(ours, rule(path="1", after="output", e_lambda=0.1), example_inputs=image())


class Stage(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.conv, self.last = conv(), last

    def forward(self, x):
        return self.last(self.conv(x))


@pytest.mark.parametrize("name", WRITES)
def test_a_write_before_the_last_block_returns_makes_no_other_value_of_the_stage(name):
    stock = build(lambda: nn.Sequential(conv(), Stage(Writes(WRITES[name])), conv()))
    ours = inject(copy.deepcopy(stock), rule(path=["1", "1.last"], after="output"), example_inputs=image())
    assert [insertion.path for insertion in injected(ours)] == ["1.last"]
    assert_attended(run(ours, image()), stock, ["1"], image())


@pytest.mark.parametrize("name", WRITES)
def test_a_sequential_whose_last_block_writes_into_what_it_returns(name):
    stock = build(lambda: nn.Sequential(conv(), nn.Sequential(conv(), Writes(WRITES[name])), conv()))
    ours = inject(copy.deepcopy(stock), rule(path="1", after="output"), example_inputs=image())
    assert_attended(run(ours, image()), stock, ["1"], image())


@pytest.mark.parametrize("paths", [["1", "1.last"], ["1.last", "1"]])
@pytest.mark.parametrize("last", [lambda: nn.Dropout(0.5), lambda: Writes(WRITES["relu_"])])
def test_one_tensor_of_two_rules_belongs_to_the_first(paths, last):
    stock = build(lambda: nn.Sequential(conv(), Stage(last()), conv()))
    rules = [{"path": path, "after": "output", "optional": path is paths[1]} for path in paths]
    found = plan(stock, {"rules": rules}, example_inputs=image())
    assert [(insertion.path, insertion.rule) for insertion in found.insertions] == [(paths[0], 0)]
    assert [skip.reason for skip in found.skips] == [f"is the same value as {paths[0]}, taken by rules[0]"]
