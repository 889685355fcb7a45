"""Invariant 3: what every forward writes to, on the model or anywhere else, is as it was after planning."""

import contextvars
import copy
import functools
import itertools
import os
import queue
import random
import threading
import weakref
from collections import Counter, OrderedDict, deque
from types import MappingProxyType, ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from simam_inject import eject, inject, plan, verify
from tests.engine.blocks import Block, build, conv, run
from tests.engine.python_modules import image
from tests.oracle import E_LAMBDA

RECIPE = {"e_lambda": E_LAMBDA, "rules": [{"path": "a", "after": "output"}]}


SPACE = SimpleNamespace(tables={})


# Counters: `write` is what the forward does, `read` what must stay


ACTIVATIONS, SEEN, NUMBER = {}, [], 0
LOCAL, VARIABLE = threading.local(), contextvars.ContextVar("calls", default=0)
COUNTER = torch.zeros(1)
COUNTS, HISTOGRAM, ORDERED = Counter(), np.zeros(3), OrderedDict(a=1, b=2)
LARGE = {number: [] for number in range(1000)}
BOXES = ModuleType("boxes")
BOXES.number, BOXES.log, BOXES.config = 0, [], SimpleNamespace(step=0)


class Slots:
    __slots__ = ("calls", "later")

    def __init__(self):
        self.calls = 0


class MoreSlots(Slots):
    __slots__ = ("more",)

    def __init__(self):
        pass

    @property
    def calls(self):
        """A slot of the base class, as `_raw_path` of `pathlib.Path` in Python 3.13."""
        return object()


class Registry(dict):
    """Changes what is written into it, and has an attribute."""

    calls = 0

    def __setitem__(self, key, value):
        super().__setitem__(key, [value])

    def update(self, *_args):
        raise TypeError("write one at a time")


class Log(list):
    def __iter__(self):
        return iter(["nothing"])


class Aliased(dict):
    """Its attributes are its entries."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__ = self


SLOTS, MORE_SLOTS, REGISTRY, LOG, ALIASED = Slots(), MoreSlots(), Registry(), Log(), Aliased(calls=0)


class Writes(Block):
    """Calls a function on what `a` computes."""

    kept = 0

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.feats = []

    def forward(self, x):
        y = self.a(x)
        self.write(self, y)
        return self.b(y)


def count_global(_model, _y):
    global NUMBER  # noqa: PLW0603
    NUMBER += 1


def count_class(model, _y):
    type(model).kept += 1


def count_local(_model, _y):
    LOCAL.calls = getattr(LOCAL, "calls", 0) + 1


def count_in_module(_model, y):
    BOXES.number += 1
    BOXES.log.append(y)
    BOXES.config.step += 1


def count_in_slots(_model, _y):
    SLOTS.calls += 1
    SLOTS.later = MORE_SLOTS.more = SLOTS.calls


def count_in_registry(_model, y):
    REGISTRY["y"] = y
    REGISTRY.calls += 1


def count_in_array(_model, _y):
    HISTOGRAM[0] += 1


def closure():
    calls = 0

    def write(_model, _y):
        nonlocal calls
        calls += 1

    return write, lambda: calls


class Locked:
    """As a logger holds: a lock, which cannot be copied."""

    def __init__(self):
        self.lock, self.items = threading.Lock(), []

    def add(self, _model, y):
        with self.lock:
            self.items.append(y)


class OpenFile(Locked):
    def __init__(self):
        super().__init__()
        self.file = open(os.devnull)  # noqa: SIM115, PTH123


def counters():
    locked, file, things, last = Locked(), OpenFile(), queue.Queue(), deque(maxlen=2)
    count, counted = closure()
    return {
        "global dict": (lambda _, y: ACTIVATIONS.update(a=y), lambda: list(ACTIVATIONS)),
        "global list": (lambda _, y: SEEN.append(y), lambda: len(SEEN)),
        "global number": (count_global, lambda: NUMBER),
        "class number": (count_class, lambda: Writes.kept),
        "closure": (count, counted),
        "lock": (locked.add, lambda: len(locked.items)),
        "open file": (file.add, lambda: len(file.items)),
        "queue": (lambda _, y: things.put(y), things.qsize),
        "deque": (lambda _, y: last.append(y), lambda: len(last)),
        "namespace": (lambda _, y: SPACE.tables.update(y=y), lambda: len(SPACE.tables)),
        "default": (lambda _, y, seen=SEEN: seen.append(y), lambda: len(SEEN)),
        "context variable": (lambda *_: VARIABLE.set(VARIABLE.get() + 1), VARIABLE.get),
        "thread local": (count_local, lambda: getattr(LOCAL, "calls", 0)),
        "module": (count_in_module, lambda: (BOXES.number, len(BOXES.log), BOXES.config.step)),
        "counter": (lambda *_: COUNTS.update(["calls"]), lambda: dict(COUNTS)),
        "ordered dict": (lambda *_: ORDERED.move_to_end(next(iter(ORDERED))), lambda: [*ORDERED]),
        "own dict": (count_in_registry, lambda: (len(REGISTRY), REGISTRY.calls)),
        "aliased dict": (lambda *_: ALIASED.update(calls=ALIASED.calls + 1), lambda: ALIASED.calls),
        "own list": (lambda _, y: LOG.append(y), lambda: len(LOG)),
        "slots": (count_in_slots, lambda: (SLOTS.calls, hasattr(SLOTS, "later"), hasattr(MORE_SLOTS, "more"))),
        "array": (count_in_array, HISTOGRAM.tolist),
        "large dict": (lambda _, y: LARGE[3].append(y), lambda: len(LARGE[3])),
        "tensor": (lambda *_: COUNTER.add_(1), COUNTER.item),
        "generator": (lambda *_: torch.rand(1), lambda: torch.get_rng_state().tolist()),
        "random": (lambda *_: random.random(), random.getstate),
    }


@pytest.mark.parametrize("as_hook", [False, True], ids=["in the forward", "in a hook"])
@pytest.mark.parametrize("name", counters())
def test_what_every_forward_writes_to_stays(name, as_hook):
    write, read = counters()[name]
    model = build(lambda: Writes((lambda *_: None) if as_hook else write))
    if as_hook:
        model.a.register_forward_hook(lambda _module, _args, output: (write(model, output), output)[1])
    for each in (ACTIVATIONS, SEEN, SPACE.tables):
        each.clear()
    before = read()
    plan(model, RECIPE, example_inputs=image())
    assert read() == before
    inject(model, RECIPE, example_inputs=image())
    assert read() == before
    run(model, image())
    assert read() != before


@pytest.mark.parametrize(
    ("get", "put", "value"),
    [
        (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
        (lambda: os.environ.get("PLANNED"), lambda value: os.environ.__setitem__("PLANNED", value), "1"),
        (lambda: np.geterr()["over"], lambda value: np.seterr(over=value), "ignore"),
        (lambda: torch.backends.cudnn.benchmark, lambda value: setattr(torch.backends.cudnn, "benchmark", value), True),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 1),
    ],
)
def test_settings_of_the_process_stay(get, put, value):
    before = get()
    plan(build(lambda: Writes(lambda *_: put(value))), RECIPE, example_inputs=image())
    assert get() == before != value


def test_a_gpu_that_is_not_in_use_yet_keeps_the_seed_of_the_user(monkeypatch):
    """Before its first use torch notes only the last seed of all GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = build(Block)
    torch.manual_seed(123)
    before = torch.cuda._lazy_seed_tracker.manual_seed_all_cb
    inject(model, RECIPE, example_inputs=image())
    assert torch.cuda._lazy_seed_tracker.manual_seed_all_cb is before is not None


class Counts:
    def __init__(self):
        self.calls = Counter()

    def __call__(self, module, *_):
        self.calls[type(module)] += 1

    def method(self, module, *_):
        self(module)

    def function(self):
        def hook(module, *_):
            self.calls[type(module)] += 1

        return hook


@pytest.mark.parametrize("name", ["register_module_forward_hook", "register_module_forward_pre_hook"])
@pytest.mark.parametrize("hook", [lambda counts: counts, lambda counts: counts.method, Counts.function])
def test_a_hook_of_all_modules_writes_nothing(name, hook):
    counts = Counts()
    with getattr(nn.modules.module, name)(hook(counts)):
        plan(build(Block), RECIPE, example_inputs=image())
        assert not counts.calls
        build(Block)(image())
    assert counts.calls


class TellsParent(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent, self.c = weakref.ref(parent), conv()

    def forward(self, x):
        self.parent().feats.append(x)
        return self.c(x)


class HasChild(Block):
    def __init__(self):
        super().__init__()
        self.feats, self.child = [], TellsParent(self)

    def forward(self, x):
        return self.child(self.b(self.a(x)))


class Lambda(Block):
    def __init__(self):
        super().__init__()
        self.feats = []
        self.keep = lambda x, m=self: m.feats.append(x)

    def forward(self, x):
        y = self.a(x)
        self.keep(y)
        return self.b(y)


class Method(Lambda):
    def __init__(self):
        super().__init__()
        self.keep = functools.partial(Method.add, self)

    def add(self, x):
        self.feats.append(x)


class InHook(Block):
    def __init__(self):
        super().__init__()
        self.feats = []
        self.a.register_forward_hook(self.add)

    def add(self, _module, _args, output):
        self.feats.append(output)


class BuiltIn(Lambda):
    def __init__(self):
        super().__init__()
        self.keep = self.feats.append


@pytest.mark.parametrize("factory", [HasChild, Lambda, Method, InHook, BuiltIn])
def test_what_a_part_writes_into_its_parent_is_the_users(factory):
    model = build(factory)
    plan(model, RECIPE, example_inputs=image())
    inject(model, RECIPE, example_inputs=image())
    assert model.feats == []
    run(model, image())
    assert [type(each) for each in model.feats] == [torch.Tensor]
    assert model.feats[0].device.type == "cpu"


class Descriptor:
    """Closes its file when it goes."""

    def __init__(self):
        self.number = os.open(os.devnull, os.O_RDONLY)

    def __del__(self):
        os.close(self.number)


class Held:
    def __init__(self):
        self.inner = [Descriptor()]

    @property
    def number(self):
        return self.inner[0].number


class Child(nn.Module):
    def __init__(self):
        super().__init__()
        self.file = Descriptor()

    @property
    def number(self):
        return self.file.number


@pytest.mark.parametrize("kind", [Descriptor, Held, Child])
def test_what_an_object_closes_at_its_end_stays_open(kind):
    model = build(Block)
    model.file = kind()
    plan(model, RECIPE, example_inputs=image())
    inject(model, RECIPE, example_inputs=image())
    os.fstat(model.file.number)


class TakesContext(Block):
    def forward(self, x, context):
        context.feature = self.a(x)
        context.items.append(1)
        return self.b(context.feature)


@pytest.mark.parametrize("kind", [Locked, OpenFile, lambda: SimpleNamespace(items=[])])
def test_an_argument_that_cannot_be_copied_is_as_before(kind):
    context = kind()
    plan(build(TakesContext), RECIPE, example_inputs=(image(), context))
    inject(build(TakesContext), RECIPE, example_inputs=(image(), context))
    assert context.items == []
    assert not hasattr(context, "feature")


class Closes:
    def __init__(self, module):
        self.module, self.calls, self.closed = module, 0, []

    def __call__(self, x):
        self.calls += 1
        return self.module(x)

    def __del__(self):
        self.closed.append(True)


class RunsByAnother(nn.Module):
    def __init__(self, refer):
        super().__init__()
        self.a, self.t = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.__dict__["other"] = refer(self.t)

    def forward(self, x):
        return self.other(self.a(x))


def closes_over(value, get):
    def call(x):
        return get(value)(x)

    return call


def in_a_cache(module):
    return functools.lru_cache(closes_over(module, lambda value: value))


def in_a_weak_dictionary(module):
    return closes_over(weakref.WeakValueDictionary(m=module), lambda value: value["m"])


IN_CLOSURES = [
    lambda module: closes_over(weakref.ref(module), lambda value: value()),
    lambda module: closes_over(weakref.WeakMethod(module.forward), lambda value: value()),
    lambda module: closes_over((module,), lambda value: value[0]),
    lambda module: closes_over(frozenset([module]), lambda value: next(iter(value))),
    lambda module: closes_over(SimpleNamespace(deep=SimpleNamespace(m=module)), lambda value: value.deep.m),
    lambda module: closes_over(itertools.cycle([module]), next),
    lambda module: closes_over({0: module}.values(), lambda value: next(iter(value))),
    lambda module: closes_over(OrderedDict(m=module).items(), lambda value: dict(value)["m"]),
    lambda module: closes_over(MappingProxyType({0: module}), lambda value: value[0]),
    lambda module: closes_over(functools.partial(type(module).forward, module), lambda value: value),
    in_a_weak_dictionary,
    in_a_cache,
]


@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support will be removed from itertools")  # Python 3.12
@pytest.mark.parametrize("refer", [Closes, weakref.proxy, lambda module: module.__call__, *IN_CLOSURES])
def test_what_refers_to_a_module_refers_to_its_twin(refer):
    model, x = RunsByAnother(refer).train(), torch.rand(2, 3, 8, 8)
    inject(model, {"rules": [{"path": "a", "after": "output"}]}, example_inputs=x)
    assert model.t.num_batches_tracked == 0
    assert getattr(model.other, "calls", 0) == 0
    model(x)
    assert model.t.num_batches_tracked == 1


class Gone:
    pass


@pytest.mark.parametrize("refer", [lambda proxy: proxy, lambda proxy: closes_over(proxy, type), lambda proxy: [proxy]])
def test_a_weak_reference_to_what_is_gone(refer):
    model = build(Block)
    model.__dict__["trainer"] = refer(weakref.proxy(Gone()))
    inject(model, RECIPE, example_inputs=image())
    eject(model)


NORM, NORMS = nn.BatchNorm2d(4).double(), nn.Sequential(nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)))).double()
HALVED = torch.ones(4, 1, 1, dtype=torch.float64)
SCALE, ADJACENT = nn.Parameter(torch.ones(4, 1, 1, dtype=torch.float64)), torch.eye(4, dtype=torch.float64).to_sparse()


class RunsGlobals(Block):
    """Modules and parameters that are no part of the model."""

    norm = nn.BatchNorm2d(4).double()

    def forward(self, x):
        NORMS.eval()
        y = self.norm(NORMS(NORM(self.a(x))))
        SCALE.data, HALVED.data = SCALE.data * 0.5, HALVED.data.half()
        return self.b(y + ADJACENT.sum())


def test_modules_and_tensors_that_are_no_part_of_the_model_stay():
    model = RunsGlobals().double().train()
    parts = [NORM, NORMS, RunsGlobals.norm]
    before = copy.deepcopy([part.state_dict() for part in parts])
    inject(model, RECIPE, example_inputs=image())
    verify(model)
    for part, state in zip(parts, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
        assert all(module.training for module in part.modules())
    assert torch.equal(SCALE.data, torch.ones(4, 1, 1, dtype=torch.float64))
    assert HALVED.dtype == torch.float64


TENSORS = {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(4, dtype=torch.complex32),
        lambda: torch.ones(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        lambda: torch.ones(4).to_mkldnn(),
        lambda: torch.nested.nested_tensor([torch.ones(4)]),
        lambda: torch.empty(4, dtype=torch.uint4),
    ],
    ids=["complex32", "float4", "mkldnn", "nested", "uint4"],
)
def test_tensors_that_torch_cannot_compare_stop_nothing(make, monkeypatch):
    tensor = make()
    monkeypatch.setitem(TENSORS, "tensor", tensor)
    model = build(lambda: Writes(lambda *_: TENSORS["tensor"]))
    inject(model, RECIPE, example_inputs=image())
    verify(model)
    assert TENSORS["tensor"] is tensor


def test_a_tensor_that_torch_cannot_compare_stays(monkeypatch):
    tensor = torch.ones(4, dtype=torch.complex32)
    monkeypatch.setitem(TENSORS, "tensor", tensor)
    plan(build(lambda: Writes(lambda *_: TENSORS["tensor"].zero_())), RECIPE, example_inputs=image())
    assert tensor.real.tolist() == [1.0] * 4


class RelativeImport(Block):
    def forward(self, x):
        from . import blocks

        return self.b(self.a(x) + getattr(blocks, "added", 0))


def test_a_module_is_left_without_what_the_forward_added_to_it():
    model = build(lambda: Writes(lambda *_: setattr(BOXES, "later", 1)))
    plan(model, RECIPE, example_inputs=image())
    assert not hasattr(BOXES, "later")
    plan(build(RelativeImport), RECIPE, example_inputs=image())
