"""Fused inference where a forward writes in place, mixes dtypes or adds two chains: the numbers of the unfused one."""

import operator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import nn

from simam_inject import inject
from simam_inject.fusing import optimize

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    """What every forward below is made of."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.acts = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
        self.own = Doubling()


class Doubling(nn.Module):
    def forward(self, x):
        x.mul_(2)
        return x.new_zeros(())


def module_writes_into_the_source(self, x):
    y = self.conv(x)
    z = self.norm(y)
    return z + self.act(y)


def sequential_writes_into_the_source(self, x):
    y = self.conv(x)
    z = self.norm(y)
    return z + self.acts(y)


def own_module_writes_into_the_source(self, x):
    y = self.conv(x)
    z = self.norm(y)
    self.own(y)
    return z + y


def method_writes_into_a_view_of_the_source(self, x):
    y = self.conv(x)
    z = self.norm(y)
    y[:, :2].mul_(2)
    return z + y


def out_writes_into_the_source(self, x):
    y = self.conv(x)
    z = self.norm(y)
    torch.mul(x, 3, out=y)
    return z + y


def writes_into_the_residual_after_the_add(self, x):
    h = x * 2
    z = self.norm(self.conv(x)) + h
    h.mul_(3)
    return F.relu(z) * h


def skip_is_added_to(self, x):
    h = x * 2
    k = h
    h += self.norm(self.conv(x))
    return h.relu() * k


def view_of_the_skip_is_read(self, x):
    h = x * 2
    k = h[:, :2]
    h += self.norm(self.conv(x))
    return k + 0 * h[:, :2]


def adds_to_itself_in_place(self, x):
    z = self.norm(self.conv(x))
    z += x
    return self.act(z)


def skip_runs_in_between(self, x):
    y = self.norm(self.conv(x))
    h = self.act(self.conv2(x))
    return torch.relu(y + h)


def two_chains_meet(self, x):
    return F.relu(self.norm(self.conv(x)) + self.norm2(self.conv2(x)))


AT_NORM = {"block": "Net", "after": "norm"}
SHORT, ADDED, WHOLE = "norm > SimAM", "norm > SimAM > (+)", "norm > SimAM > (+) > relu"


def net_with(forward, recipe=AT_NORM):
    torch.manual_seed(0)
    model = type("Net", (Parts,), {"forward": forward})().eval()
    return inject(model, {"rules": recipe if isinstance(recipe, list) else [recipe]}, example_inputs=X[:1])


@torch.no_grad()
def assert_fused_equals_unfused(model, chains):
    unfused = model(X.clone())
    assert [fusion.chain for fusion in optimize(model)] == chains
    fused = model(X.clone())
    assert fused.dtype == unfused.dtype
    torch.testing.assert_close(fused, unfused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("forward", "chains"),
    [
        (module_writes_into_the_source, [SHORT]),
        (sequential_writes_into_the_source, [SHORT]),
        (own_module_writes_into_the_source, [SHORT]),
        (method_writes_into_a_view_of_the_source, [SHORT]),
        (out_writes_into_the_source, [SHORT]),
        (writes_into_the_residual_after_the_add, [ADDED]),
        (skip_is_added_to, [SHORT]),
        (view_of_the_skip_is_read, [SHORT]),
        (adds_to_itself_in_place, [WHOLE]),
        (skip_runs_in_between, [WHOLE]),
    ],
)
def test_a_chain_ends_where_it_would_read_or_write_something_else(forward, chains):
    assert_fused_equals_unfused(net_with(forward), chains)


def test_a_write_between_norm_and_simam_leaves_no_chain():
    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        y.mul_(2)
        return self.act(z) * y

    assert_fused_equals_unfused(net_with(forward, {"block": "Net", "before": "act"}), [])


def test_a_sum_of_two_chains_belongs_to_the_first():
    recipe = [AT_NORM, {"block": "Net", "after": "norm2"}]
    assert_fused_equals_unfused(net_with(two_chains_meet, recipe), [WHOLE, "norm2 > SimAM"])


@pytest.mark.parametrize("add", [operator.add, operator.iadd])
def test_a_wider_residual_decides_the_dtype_as_it_does_unfused(add):
    def forward(self, x):
        return torch.relu(add(self.norm(self.conv(x)), x))

    with torch.autocast("cpu", torch.bfloat16):
        assert_fused_equals_unfused(net_with(forward), [WHOLE])
