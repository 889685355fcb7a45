"""Planning leaves no trace outside the model: globals, caches, class attributes, closures, what hooks and objects hold.

`CACHES`: something that the first forward fills, with a tensor that the second one uses. `counters`: what every
forward writes to. Both are as they were before `plan`, `inject` and `verify`, and the stock model runs afterwards.
"""

import contextvars
import functools
import os
import queue
import random
import threading
import weakref
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from simam_inject import inject, plan, verify
from tests.engine.python_modules import B, conv, image
from tests.oracle import E_LAMBDA, hooked, same_bits

RECIPE = {"e_lambda": E_LAMBDA, "rules": [{"path": "a", "after": "output"}]}


def table(side=8):
    return torch.arange(side * side, dtype=torch.float64).view(side, side)


# Caches


@functools.lru_cache(None)
def lru(side):
    return table(side)


def by_default(side, cache={}):  # noqa: B006 - a cache, as people write it
    if side not in cache:
        cache[side] = table(side)
    return cache[side]


def by_attribute(side):
    if not hasattr(by_attribute, "cache"):
        by_attribute.cache = table(side)
    return by_attribute.cache


def memo(function):
    store = {}

    @functools.wraps(function)
    def inner(*args):
        if args not in store:
            store[args] = function(*args)
        return store[args]

    return inner


class Tables:
    held = None
    by_side = {}  # noqa: RUF012

    def __init__(self):
        self.own = {}

    @classmethod
    def get(cls, side):
        if cls.held is None:
            cls.held = table(side)
        return cls.held

    @staticmethod
    def look_up(side):
        return Tables.by_side.setdefault(side, table(side))

    def ask(self, side):
        if side not in self.own:
            self.own[side] = table(side)
        return self.own[side]


TABLES, SPACE, GLOBAL = Tables(), SimpleNamespace(tables={}), None


def in_global(side):
    global GLOBAL  # noqa: PLW0603
    if GLOBAL is None:
        GLOBAL = table(side)
    return GLOBAL


CACHES = {
    "lru_cache": lru,
    "default argument": by_default,
    "function attribute": by_attribute,
    "memo": memo(table),
    "partial": functools.partial(by_default, 8),
    "class attribute": Tables.get,
    "dict of a class": Tables.look_up,
    "global object": TABLES.ask,
    "namespace": lambda side: SPACE.tables.setdefault(side, table(side)),
    "global variable": in_global,
}


class Adds(B):
    """Its function is named in the forward, or stands on the module."""

    def forward(self, x):
        return self.b(self.a(x) + (FUNCTION if self.function is None else self.function)(*self.args))

    def __init__(self, function=None, args=(8,)):
        super().__init__()
        self.function, self.args = function, args


FUNCTION = None


class CachesOnClass(B):
    table = None

    def forward(self, x):
        if type(self).table is None:
            CachesOnClass.table = table()
        return self.b(self.a(x) + self.table)


class CachesByMethod(B):
    @functools.lru_cache(None)  # noqa: B019
    def table(self, side):
        return table(side)

    def forward(self, x):
        return self.b(self.a(x) + self.table(8))


class CachesOnInstance(CachesByMethod):
    def __init__(self):
        super().__init__()
        self.table = functools.lru_cache(table)


def build(factory):
    torch.manual_seed(4)
    return factory().double().eval()


def run(model, *args):
    with torch.no_grad():
        return model(*args)


def runs_as_before(model, stock):
    plan(model, RECIPE, example_inputs=image())
    assert same_bits(run(model, image()), run(stock, image()))
    inject(model, RECIPE, example_inputs=image())
    with hooked(stock, ["a"]):
        assert torch.allclose(run(model, image()), run(stock, image()), atol=1e-10)
    assert verify(model).ok


@pytest.mark.parametrize("stands", ["named", "on the module"])
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_holds_real_tensors(name, stands, monkeypatch):
    function, args = CACHES[name], () if name == "partial" else (8,)
    monkeypatch.setitem(globals(), "FUNCTION", function)
    model, stock = (build(lambda: Adds(function if stands == "on the module" else None, args)) for _ in range(2))
    lru.cache_clear()
    for cache in (by_default.__defaults__[0], Tables.by_side, TABLES.own, SPACE.tables, by_attribute.__dict__):
        cache.clear()
    Tables.held = None
    monkeypatch.setitem(globals(), "GLOBAL", None)
    runs_as_before(model, stock)


@pytest.mark.parametrize("factory", [CachesOnClass, CachesByMethod, CachesOnInstance])
def test_a_cache_of_a_class_or_a_method_holds_real_tensors(factory, monkeypatch):
    monkeypatch.setattr(CachesOnClass, "table", None)
    runs_as_before(build(factory), build(factory))


# Counters: `write` is what the forward does, `read` what must stay


ACTIVATIONS, SEEN, NUMBER = {}, [], 0
LOCAL, VARIABLE = threading.local(), contextvars.ContextVar("calls", default=0)
COUNTER = torch.zeros(1)


class Writes(B):
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


class TellsParent(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent, self.c = weakref.ref(parent), conv()

    def forward(self, x):
        self.parent().feats.append(x)
        return self.c(x)


class HasChild(B):
    def __init__(self):
        super().__init__()
        self.feats, self.child = [], TellsParent(self)

    def forward(self, x):
        return self.child(self.b(self.a(x)))


class Lambda(B):
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


class InHook(B):
    def __init__(self):
        super().__init__()
        self.feats = []
        self.a.register_forward_hook(self.add)

    def add(self, _module, _args, output):
        self.feats.append(output)


@pytest.mark.parametrize("factory", [HasChild, Lambda, Method, InHook])
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
    model = build(B)
    model.file = kind()
    plan(model, RECIPE, example_inputs=image())
    inject(model, RECIPE, example_inputs=image())
    os.fstat(model.file.number)


class TakesContext(B):
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


def test_another_thread_draws_numbers_as_before_where_planning_draws_none():
    """The generators are the process's: they are put back, and the numbers drawn until then come again."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    plan(build(B), RECIPE, example_inputs=image())
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)
