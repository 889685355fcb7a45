"""Ways in which blocks call each other, each as a small model that is held against hooks on the stock one."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject import inject, injected, plan, verify
from tests.oracle import E_LAMBDA, assert_attended, assert_right, hooked

EVERY_CONV = {"e_lambda": E_LAMBDA, "rules": [{"path": "*", "after": {"op": "conv"}}]}


def image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(model, x):
    with torch.no_grad():
        return model(x)


def build(network):
    torch.manual_seed(0)
    return network().double().eval()


class Tokens(nn.Module):
    """Takes the size of the map as two whole numbers, as vision transformers with convolutions do."""

    def __init__(self):
        super().__init__()
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, tokens, size):
        n, _, c = tokens.shape
        grid = tokens.transpose(1, 2).view(n, c, *size)
        return tokens + self.dw(grid).flatten(2).transpose(1, 2), size


class TokenNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Tokens()

    def forward(self, x):
        x = self.stem(x)
        tokens, (h, w) = self.block(x.flatten(2).transpose(1, 2), x.shape[2:])
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, h, w)


def test_a_size_that_a_caller_passes_may_change():
    stock = build(TokenNet)
    model = inject(copy.deepcopy(stock), EVERY_CONV, example_inputs=image(1, 3, 8, 8))
    assert [insertion.path for insertion in injected(model)] == ["stem", "block.dw"]
    x = image(2, 3, 10, 6)
    assert_attended(run(model, x), stock, ["stem", "block.dw"], x)
    assert verify(model, example_inputs=x).ok


class Extending(nn.Module):
    """Fills the lists of its caller, as torchvision's LastLevelP6P7 does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def forward(self, features, names):
        features.append(self.conv(features[-1]))
        names.append("next")


class ExtendingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Extending() for _ in range(2))

    def forward(self, x):
        features, names = [x], ["first"]
        for block in self.blocks:
            block(features, names)
        return dict(zip(names, features, strict=True))


def test_a_block_that_fills_its_callers_list_keeps_doing_so():
    stock, x = build(ExtendingNet), image(1, 3, 16, 16)
    model = inject(copy.deepcopy(stock), EVERY_CONV, example_inputs=x)
    assert [insertion.path for insertion in injected(model)] == ["blocks.0.conv", "blocks.1.conv"]
    with hooked(stock, ["blocks.0.conv", "blocks.1.conv"]):
        expected = run(stock, x)
    found, plain = run(model, x), run(stock, x)
    assert list(found) == list(plain) == ["first", "next"]
    assert_right(found, expected, plain)


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
    x, stock = image(1, 3, 16, 16), network().double().eval()
    found = plan(stock, recipe, example_inputs=x)
    (only,) = found.insertions
    assert (only.path, only.edit.module) == (place, place)
    assert only.runs == len(found.skips) + 1
    assert {skip.reason for skip in found.skips} == {f"is covered by the SimAM on {place}"}
    model = inject(copy.deepcopy(stock), recipe, example_inputs=x)
    assert_attended(run(model, x), stock, [place], x)
    assert {skip.reason for skip in plan(model, recipe, example_inputs=x).skips} == {"already has SimAM"}


def test_one_call_of_several_is_attended_alone():
    rule = {"block": "Twice", "after": {"op": "dropout", "which": "last"}}
    stock, x = build(Twice), image(1, 3, 16, 16)
    model = inject(copy.deepcopy(stock), {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=x)
    assert [(one.path, one.runs) for one in injected(model)] == [("drop[2]", 1)]
    with hooked(stock, ["two"]):  # in eval mode the dropout returns what `two` does
        expected = run(stock, x)
    assert_right(run(model, x), expected, run(stock, x))
