"""Fault A, frozen forwards: whatever a forward asks Python for is asked again at every call (A1 to A12, by kind).

Each case: inject, then change a flag, global, container, weight or size, and compare with the stock forward with hooks.
"""

import copy
import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it

from simam_inject import InjectError, bypass, eject, inject, injected, plan
from tests.engine.blocks import Block, build
from tests.engine.networks import every_conv
from tests.engine.python_modules import CASES, CONTEXT, image
from tests.oracle import E_LAMBDA, assert_right, distance, hooked, same_bits

MOVES = ("insert", "delete", "swap")
"""Changes after which an attended module has another path: to raise and to name the site is right too."""
RECIPE = {"e_lambda": E_LAMBDA, "rules": [{"pattern": "conv2d"}]}


def attended(model):
    """Paths of the convolutions that are attended: those with a SimAM as their child."""
    return sorted(path for path in every_conv(model) if "simam" in dict(model.get_submodule(path).named_children()))


def run(model, *args, seed=7):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(*args)


def assert_like_hooks(model, stock, *args, seed=7):
    """The injected model does what the stock one with hooks does, and bypassed what the stock one does."""
    plain = run(stock, *args, seed=seed)
    with hooked(stock, attended(model)):
        expected = run(stock, *args, seed=seed)
    assert_right(run(model, *args, seed=seed), expected, plain)
    with bypass(model):
        assert same_bits(run(model, *args, seed=seed), plain)


@pytest.fixture(autouse=True)
def _context():
    before = CONTEXT.set(1.0)
    yield
    CONTEXT.reset(before)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, cases in CASES.items() for name in cases], ids=lambda part: part
)
def test_the_forward_follows(kind, name, monkeypatch):
    factory, change, after = CASES[kind][name]
    stock = build(factory)
    model = inject(build(factory), RECIPE, example_inputs=image())
    assert attended(model) == sorted(insertion.path for insertion in injected(model))
    assert attended(model)
    assert_like_hooks(model, stock, image(), seed=11)
    change(stock, monkeypatch)
    change(model, monkeypatch)
    try:
        assert_like_hooks(model, stock, after, seed=12)
    except InjectError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert name in MOVES, message
        assert any(path in message for path in every_conv(stock))
        return
    assert_like_hooks(model, stock, after, seed=13)
    for _, module in stock.named_modules():
        assert not hasattr(module, "simam")
    eject(model)
    assert same_bits(run(model, after), run(stock, after))


@pytest.mark.parametrize("name", sorted(CASES["A9"]))
def test_chance_stays_chance(name):
    """What differs between two seeds on the stock model differs on the injected one, and nothing else."""
    factory, _, _ = CASES["A9"][name]
    stock = build(factory)
    model = inject(build(factory), RECIPE, example_inputs=image())
    stays = same_bits(run(stock, image(), seed=1), run(stock, image(), seed=6))
    assert same_bits(run(model, image(), seed=1), run(model, image(), seed=6)) is stays


# A5: a forward that changes weights or buffers


class Renormed(Block):
    def forward(self, x):
        self.a.weight.data = torch.renorm(self.a.weight.data, 2, 0, 0.3)
        return self.b(self.a(x))


class Clamped(Block):
    def forward(self, x):
        self.a.weight.data.clamp_(-0.05, 0.05)
        return self.b(self.a(x))


class Normalised(Block):
    def forward(self, x):
        with torch.no_grad():
            self.a.weight.div_(self.a.weight.norm() / 0.3)
        return self.b(self.a(x))


class Copied(Block):
    def forward(self, x):
        with torch.no_grad():
            self.b.weight.copy_(self.a.weight.flip(0))
        return self.b(self.a(x))


class Faded(Block):
    def forward(self, x):
        with torch.no_grad():
            self.a.weight.mul_(0.9)
        return self.b(self.a(x))


class FadedData(Block):
    def forward(self, x):
        self.a.weight.data.mul_(0.9)
        return self.b(self.a(x))


class FadedArray(Block):
    def forward(self, x):
        self.a.weight.detach().numpy()[...] *= 0.9
        return self.b(self.a(x))


class Momentum(Block):
    """As in MoCo and its kin: one half follows the other."""

    def forward(self, x):
        for ours, theirs in zip(self.a.parameters(), self.b.parameters(), strict=True):
            theirs.data.mul_(0.9).add_(ours.detach(), alpha=0.1)
        return self.b(self.a(x))


def test_the_renormed_weight_stays_within_its_bound():
    model = build(Renormed)
    train(inject(model, RECIPE, example_inputs=image()))
    run(model, image())
    assert model.a.weight.flatten(1).norm(dim=1).max() <= 0.3 + 1e-4


@pytest.mark.parametrize("factory", [Renormed, Clamped, Normalised, Copied, Faded, FadedData, FadedArray, Momentum])
def test_weights_that_a_forward_changes_are_changed_at_every_step(factory):
    stock = build(factory)
    model = inject(build(factory), RECIPE, example_inputs=image())
    assert all(map(torch.equal, model.state_dict().values(), stock.state_dict().values()))
    plain = train(copy.deepcopy(stock))
    train(model)
    with hooked(stock, ["a", "b"]):
        train(stock)
        expected = run(stock, image())
    assert_right(run(model, image()), expected, run(plain, image()))


def train(model, steps=30):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(steps):
        optimizer.zero_grad()
        (model(image(seed=step)) - 1).square().mean().backward()
        optimizer.step()
    return model


class Counted(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0

    def forward(self, x):
        self.calls += 1
        self.calls.mul_(2)
        self.seen += 1
        return self.b(self.a(x)) / self.seen * self.calls.sqrt()


def test_counters_count_the_users_calls_alone():
    stock, model = build(Counted), build(Counted)
    plan(model, RECIPE, example_inputs=image())
    assert (model.seen, int(model.calls)) == (0, 0)
    inject(model, RECIPE, example_inputs=image())
    assert (model.seen, int(model.calls)) == (0, 0)
    with hooked(stock, ["a", "b"]):
        for _ in range(3):
            assert distance(run(model, image()), run(stock, image())) < 1e-8
    assert (model.seen, int(model.calls)) == (3, 14)


# A10: what a forward fills


class FillsDict(Block):
    def __init__(self):
        super().__init__()
        self.kept = {"a": []}

    def forward(self, x):
        y = self.a(x)
        self.kept["a"].append(y)
        return self.b(y)

    def found(self):
        return self.kept["a"]


class FillsList(FillsDict):
    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        y = self.a(x)
        self.kept += [y]
        return self.b(y)

    def found(self):
        return self.kept


class FillsDeque(FillsList):
    def __init__(self):
        super().__init__()
        self.kept = deque(maxlen=3)

    def forward(self, x):
        y = self.a(x)
        self.kept.append(y)
        return self.b(y)


class FillsAttribute(FillsList):
    def forward(self, x):
        self.last = self.a(x)
        self.kept = [*self.kept, self.last]
        return self.b(self.last)


class FillsTupleInObject(FillsList):
    def __init__(self):
        super().__init__()
        self.store = SimpleNamespace(kept=())

    def forward(self, x):
        y = self.a(x)
        self.store.kept += (y,)
        return self.b(y)

    def found(self):
        return self.store.kept


@pytest.mark.parametrize("factory", [FillsDict, FillsList, FillsDeque, FillsAttribute, FillsTupleInObject])
def test_what_a_forward_fills_holds_the_users_calls_alone(factory):
    stock, model = build(factory), build(factory)
    plan(model, RECIPE, example_inputs=image())
    assert len(model.found()) == 0
    assert not hasattr(model, "last")
    run(model, image())
    assert len(model.found()) == 1
    before = model.found()[0]
    inject(model, RECIPE, example_inputs=image())
    assert len(model.found()) == 1
    assert model.found()[0] is before
    run(model, image())
    run(model, image())
    assert len(model.found()) == 3
    with hooked(stock, ["a", "b"]):
        run(stock, image())
    assert all(type(each) is torch.Tensor and each.device.type == "cpu" for each in model.found())
    assert_right(model.found()[-1], stock.found()[0], before)


class FillsArgument(Block):
    def forward(self, x, context):
        context.feature = self.a(x)
        context.calls.append(1)
        return self.b(context.feature)


def test_an_argument_is_filled_at_the_users_calls_alone():
    stock, model = build(FillsArgument), build(FillsArgument)
    context = SimpleNamespace(calls=[])
    plan(model, RECIPE, example_inputs=(image(), context))
    inject(model, RECIPE, example_inputs=(image(), context))
    assert vars(context) == {"calls": []}
    assert_like_hooks(model, stock, image(), context)
    run(model, image(), context)
    ours = context.feature
    with hooked(stock, ["a"]):
        run(stock, image(), context)
    assert distance(ours, context.feature) < 1e-8


LOG = []


class FillsGlobal(Block):
    def forward(self, x):
        y = self.a(x)
        LOG.append(y)
        return self.b(y)


def test_a_global_list_gets_the_users_tensors():
    """Whether planning adds to a list that only a global name reaches is not promised; what is in it is real."""
    LOG.clear()
    model = build(FillsGlobal)
    inject(model, RECIPE, example_inputs=image())
    LOG.clear()
    run(model, image())
    assert [tuple(each.shape) for each in LOG] == [(2, 4, 8, 8)]
    assert LOG[0].device.type == "cpu"


# A11: branches that are dropped at random in train mode


class DropsByNumpy(Block):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def chance(self):
        return self.rng.random()

    def reseed(self, seed):
        self.rng = np.random.default_rng(seed)

    def forward(self, x):
        y = self.a(x)
        return y if self.training and self.chance() < 0.5 else y + self.b(y)


class DropsByGlobalNumpy(DropsByNumpy):
    def chance(self):
        return np.random.rand()

    def reseed(self, seed):
        np.random.seed(seed)


class DropsByRandom(DropsByNumpy):
    def chance(self):
        return random.random()

    def reseed(self, seed):
        random.seed(seed)


class DropsByTorch(DropsByNumpy):
    def chance(self):
        return torch.rand(()).item()

    def reseed(self, seed):
        torch.manual_seed(seed)


class DropsPerSample(DropsByTorch):
    def forward(self, x):
        y = self.a(x)
        if not self.training:
            return y + self.b(y)
        keep = torch.rand(len(x), 1, 1, 1) < 0.5
        return y + self.b(y) * keep


@pytest.mark.parametrize("factory", [DropsByNumpy, DropsByGlobalNumpy, DropsByRandom, DropsByTorch, DropsPerSample])
def test_branches_are_dropped_at_random_in_train_mode(factory):
    stock = build(factory)
    model = inject(build(factory), RECIPE, example_inputs=image())
    model.train()
    stock.train()
    outputs = []
    with torch.no_grad(), hooked(stock, attended(model)):
        for seed in range(12):
            model.reseed(seed)
            outputs.append(model(image()))
            stock.reseed(seed)
            assert distance(outputs[-1], stock(image())) < 1e-8
    assert any(not same_bits(output, outputs[0]) for output in outputs)


# A12: forwards that other tools trace


class IsList(Block):
    def forward(self, x):
        y = self.a(x)
        if isinstance(y, list):
            y = y[0]
        return self.b(y)


class IsTuple(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y[0] if isinstance(y, (tuple, dict)) else y)


class TypeIsTuple(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if type(y) is not tuple else None


class UsesConstant(Block):
    flag = False

    def forward(self, x):
        y = self.a(x)
        return (self.b(y), y) if self.flag else self.b(F.relu(y))


@pytest.mark.parametrize("factory", [IsList, IsTuple, TypeIsTuple, UsesConstant])
def test_fx_and_jit_trace_as_before(factory):
    stock = build(factory)
    model = inject(build(factory), RECIPE, example_inputs=image())
    assert run(torch.fx.symbolic_trace(stock), image()).shape == (2, 4, 8, 8)
    assert_like_hooks(model, stock, image())
    expected = run(model, image())
    assert distance(run(torch.fx.symbolic_trace(model), image()), expected) < 1e-12
    scripted = torch.jit.trace(model, image(), check_trace=False)
    assert distance(run(scripted, image()), expected) < 1e-6  # the trace holds lambda in float32
