"""What a forward reads around it: functions, enums, classes of children, objects, globals, torch's own state."""

import copy
import enum
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from simam_inject import InjectError, inject, injected, plan, simam
from tests.engine.blocks import Block
from tests.engine.oracle import hooked, same_bits

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))


class Mode(enum.Enum):
    ONE, TWO = 1, 2


class Surrounded(Block):
    def __init__(self):
        super().__init__()
        self.function, self.mode, self.child = functional.relu, Mode.ONE, nn.ReLU()
        self.settings = types.SimpleNamespace(k=2.0, unread=1)


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


class ReadsGlobal(Block):
    def forward(self, x):
        return self.b(self.a(x) * (2 if FLAG else 3))


class CountsInSettings(Surrounded):
    def forward(self, x):
        self.settings.k += 1
        return self.b(self.a(x))


class AsksType(Block):
    def forward(self, x):
        return self.b(self.a(x) if type(x) is torch.Tensor else x)


def injected_pair(block):
    torch.manual_seed(4)
    plain = block()
    return plain, inject(copy.deepcopy(plain), f"after {block.__name__}.a", example_inputs=X)


def same_as_hooks(plain, ours):
    with hooked(plain, ["a"], 1e-4, simam):
        return same_bits(plain(X), ours(X))


@pytest.mark.parametrize(
    ("block", "name", "value"),
    [
        (RunsFunction, "function", functional.gelu),
        (ReadsEnum, "mode", Mode.TWO),
        (AsksChild, "child", nn.GELU()),
    ],
)
def test_what_was_read_and_changes_is_loud(block, name, value):
    plain, ours = injected_pair(block)
    assert injected(ours)[0].means == "forward"
    assert same_as_hooks(plain, ours)
    assert same_as_hooks(plain, copy.deepcopy(ours))
    setattr(ours, name, value)
    with pytest.raises(InjectError, match=name):
        ours(X)


QUERIES = {
    "is_tracing": torch.jit,
    "is_in_onnx_export": torch.onnx,
    "is_compiling": torch.compiler,
    "is_exporting": torch.compiler,
}


class AsksTorch(Block):
    query = "is_tracing"

    def forward(self, x):
        return self.b(self.a(x) * (2 if getattr(QUERIES[self.query], self.query)() else 3))


@pytest.mark.parametrize("query", QUERIES)
def test_a_block_that_asks_whether_it_is_exported_is_left_as_it_is(query, monkeypatch):
    monkeypatch.setattr(AsksTorch, "query", query)
    (site,) = plan(AsksTorch(), "after askstorch.a", example_inputs=X).insertions
    assert site.means == "boundary"
    assert f"compiled or exported ({query})" in site.note


class AsksForScript(Block):
    def forward(self, x):
        return self.b(self.a(x) * (2 if torch.jit.is_scripting() else 3))


def test_python_code_is_never_scripted():
    plain, ours = injected_pair(AsksForScript)
    assert injected(ours)[0].means == "forward"
    assert same_as_hooks(plain, ours)


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


def test_what_a_wrapper_finds_elsewhere_is_not_missing():
    plain = Delegates()
    ours = inject(copy.deepcopy(plain), "after delegates.inner.a", example_inputs=X)
    assert injected(ours)[0].means == "forward"
    with hooked(plain, ["inner.a"], 1e-4, simam):
        assert same_bits(plain(X), ours(X))
    ours.inner.k = 3.0
    with pytest.raises(InjectError, match=r"inner\.k"):
        ours(X)


def test_an_attribute_of_an_object_is_checked_where_the_forward_names_it():
    plain, ours = injected_pair(ReadsSettings)
    assert injected(ours)[0].means == "forward"
    ours.settings.unread = 2
    assert same_as_hooks(plain, ours)
    ours.settings.k = 3.0
    with pytest.raises(InjectError, match=r"settings\.k"):
        ours(X)


def test_a_plain_global_is_checked(monkeypatch):
    plain, ours = injected_pair(ReadsGlobal)
    assert injected(ours)[0].means == "forward"
    assert same_as_hooks(plain, ours)
    monkeypatch.setitem(globals(), "FLAG", False)
    with pytest.raises(InjectError, match="global FLAG"):
        ours(X)


@pytest.mark.parametrize(
    ("block", "reason"),
    [(CountsInSettings, "changes an object of the module (settings)"), (AsksType, "the type of x with type()")],
)
def test_what_cannot_be_followed_is_left_as_it_is(block, reason):
    plain, ours = injected_pair(block)
    assert injected(ours)[0].means == "boundary"
    assert reason in injected(ours)[0].note
    assert same_as_hooks(plain, ours)
