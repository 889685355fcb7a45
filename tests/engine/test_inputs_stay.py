"""What the user hands in stays as it is: example inputs, buffers that a pending backward has saved."""

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from simam_inject import inject, injected, plan, verify
from simam_inject.errors import NoMatchError
from tests.engine.blocks import Block, Net, conv
from tests.oracle import same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


class WritesIntoInput(Net):
    def forward(self, x):
        x.sub_(0.5)
        return super().forward(x)


class NeedsNumbers(WritesIntoInput):
    """Runs on its own tensors, since a meta tensor has no numbers."""

    def forward(self, x):
        x.mul_(1 + x.max().item())
        return super().forward(x)


class EmptiesList(Net):
    def forward(self, images):
        return super().forward(images.pop())


class FillsDict(Net):
    def forward(self, batch):
        batch["again"] = batch["image"].add_(1)
        return super().forward(batch["again"])


@dataclass
class Sample:
    image: torch.Tensor


class WritesIntoObject(Net):
    def forward(self, sample):
        return super().forward(sample.image.sub_(0.5))


@pytest.mark.parametrize(
    ("network", "wrap"),
    [
        (WritesIntoInput, lambda x: x),
        (NeedsNumbers, lambda x: x),
        (EmptiesList, lambda x: [x]),
        (FillsDict, lambda x: ({"image": x},)),
        (WritesIntoObject, lambda x: (Sample(x),)),
    ],
)
def test_a_forward_that_writes_into_its_input(network, wrap):
    model = network(Block()).eval()
    image = X.clone()
    given = wrap(image)
    inject(model, "after block.a", example_inputs=given)
    assert verify(model, example_inputs=given).ok
    assert same_bits(image, X)
    assert image._version == 0
    held = given[0] if isinstance(given, tuple) else given
    assert not isinstance(held, list) or len(held) == 1
    assert not isinstance(held, dict) or list(held) == ["image"]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(3)

    def forward(self, x, y):
        return self.a(x) + self.b(y) if x is not y else self.a(x)


class Cached(Pair):
    def forward(self, x, cache, again):
        assert cache["image"] is x
        assert cache is again
        return self.a(x)


class Both(Pair):
    def forward(self, x, y):
        return self.a(x) + self.b(y)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = Both()

    def forward(self, x, y):
        return self.both(x, y)


@pytest.mark.parametrize("example", [(X, X), {"x": X, "y": X}], ids=["positions", "keywords"])
def test_a_tensor_that_is_passed_twice_stays_one(example):
    model = inject(Pair().eval(), "after pair.a", example_inputs=example)
    assert verify(model, example_inputs=example).ok
    with pytest.raises(NoMatchError, match="never ran"):
        plan(Pair().eval(), {"rules": [{"path": "b", "after": "output"}]}, example_inputs=example)
    with pytest.raises(NoMatchError, match="the example inputs hold one tensor more than once"):
        plan(Outer().eval(), {"rules": [{"path": "both", "before": "input"}]}, example_inputs=example)


def test_two_tensors_of_one_example():
    model = inject(Pair().eval(), {"rules": [{"block": "Pair", "before": "b"}]}, example_inputs=(X, X + 1))
    assert [site.path for site in injected(model)] == ["y"]
    assert verify(model, example_inputs=(X, X + 1)).ok


def test_what_is_in_two_arguments_stays_one():
    cache = {"image": X}
    model = inject(Cached().eval(), "after cached.a", example_inputs=(X, cache, cache))
    assert verify(model, example_inputs=(X, cache, cache)).ok


def pending():
    torch.manual_seed(1)
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv()).eval()
    return model, model(X).sum()


class Careful(nn.Module):
    """Asks for numbers, so that planning runs it on its own tensors."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        assert x.max().item() > 0
        return self.inner(x)


@pytest.mark.parametrize("network", [lambda model: model, Careful])
def test_a_pending_backward_survives(network):
    model, loss = pending()
    model = network(model)
    recipe = {"rules": [{"block": "ReLU", "after": "output"}]}
    inject(model, recipe, example_inputs=X)
    verify(model, example_inputs=X)
    loss.backward()
    assert model.get_parameter(next(name for name, _ in model.named_parameters())).grad is not None


class Counts(Block):
    """Writes into buffers by every name there is: its own, a view's, a second attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(4))
        self.register_buffer("first", self.count[:1])
        self.alias = self.count

    def forward(self, x):
        self.count.add_(1)
        self.alias.add_(2)
        return self.b(self.a(x)) + self.first + self.count[1] + self.alias.sum()


def test_buffers_that_are_known_by_several_names():
    model = Net(Careful(Counts())).eval()
    inject(model, {"rules": [{"block": "Counts", "after": "a"}]}, example_inputs=X)
    assert verify(model, example_inputs=X).ok
    counts = model.block.inner
    assert counts.count.tolist() == [0, 0, 0, 0]
    assert counts.first.data_ptr() == counts.count.data_ptr() == counts.alias.data_ptr()


def test_buffers_of_inference_mode():
    with torch.inference_mode():
        norm = nn.BatchNorm2d(4)
    model = Net(Careful(nn.Sequential(Block(), norm.requires_grad_(False)))).eval()
    assert plan(model, "after block.a", example_inputs=X).insertions
    assert norm.running_mean.tolist() == [0, 0, 0, 0]


def test_a_model_whose_example_is_an_object_can_be_pickled():
    """Its record of the example has shapes alone, or nothing."""
    model = inject(WritesIntoObject(Block()).eval(), "after block.a", example_inputs=(Sample(X.clone()),))
    again = pickle.loads(pickle.dumps(model))
    assert same_bits(again(Sample(X.clone())), model(Sample(X.clone())))


class Slotted(Block):
    __slots__ = ("seen",)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


def test_what_stands_in_a_slot_is_copied_too():
    model = Slotted().eval()
    inject(model, "after slotted.a", example_inputs=torch.rand(2, 4, 8, 8))
    assert model.seen == []


def test_a_module_that_keeps_a_storage():
    model = Block().eval()
    model.memory = torch.ones(2).untyped_storage()
    inject(model, "after block.a", example_inputs=torch.rand(2, 4, 8, 8))
    assert verify(model).ok
