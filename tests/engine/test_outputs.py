"""Outputs of any class are compared, NaN and infinity included; where nothing can be compared, the check says so."""

import pytest
import torch

from simam_inject import SimAM, inject, verify
from simam_inject.errors import NoMatchError
from simam_inject.verification.outputs import difference, tensors_of
from tests.engine.blocks import Block, Net

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))
INF, NAN = float("inf"), float("nan")
LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("one", "other"),
    [(NAN, 0.0), (0.0, NAN), (INF, LARGEST), (INF, NAN), (-INF, INF), (1.0, 1.5), (complex(NAN, 0), 0j)],
)
def test_what_differs(one, other):
    assert difference(torch.tensor([1.0, one]), torch.tensor([1.0, other])) is not None


@pytest.mark.parametrize("values", [[NAN, 1.0], [INF, -INF], [1.0], [True], [complex(NAN, 1)]])
def test_what_is_equal(values):
    assert difference(torch.tensor(values), torch.tensor(values)) is None


def test_sparse_tensors():
    one, other = torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()
    assert difference(one, one.clone()) is None
    assert difference(one, other) == "output 0 differs by up to 1"


class Result:
    def __init__(self, scores):
        self.scores, self.source = scores, self


class Slotted:
    __slots__ = ("scores",)

    def __init__(self, scores):
        self.scores = scores


class Returns(Net):
    def __init__(self, kind):
        super().__init__(Block())
        self.kind = kind

    def forward(self, x):
        return self.kind(super().forward(x))


@pytest.mark.parametrize("kind", [Result, Slotted, lambda scores: [Result(scores)]])
def test_an_output_of_any_class_is_looked_into(kind, monkeypatch):
    model = inject(Returns(kind).eval(), "after block.a", example_inputs=X)
    assert len(list(tensors_of(model(X)))) == 1
    assert verify(model, example_inputs=X).ok
    monkeypatch.setattr(SimAM, "forward", lambda self, x: x + 1)
    failed = {check.name for check in verify(model, example_inputs=X).checks if check.ok is False}
    assert "bypassed: equal to the original in eval mode" in failed
    assert "equal to the formula in hooks on the original, at another input size" in failed


def test_an_output_without_tensors_proves_nothing():
    model = inject(Returns(lambda scores: scores.tolist()).eval(), "after block.a", example_inputs=X)
    checks = {check.name: check for check in verify(model, example_inputs=X).checks}
    for name in (
        "bypassed: equal to the original in eval mode",
        "bypassed: equal to the original in train mode",
        "equal to the formula in hooks on the original, at another input size",
    ):
        assert (checks[name].ok, checks[name].detail) == (None, "the output, a list, holds no tensors to compare")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_child_takes_no_hooks():
    model = Net(Block()).eval()
    model.block.a = torch.jit.script(model.block.a)
    with pytest.raises(NoMatchError, match=r"block\.a: is a torch\.jit\.ScriptModule"):
        inject(model, "after block.a", example_inputs=X)
    inject(model, "after block", example_inputs=X)
    assert verify(model).ok
