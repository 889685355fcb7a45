"""Invariant 3: what a forward caches in globals, classes, modules or closures holds real tensors after planning."""

import functools
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from simam_inject import inject, plan, verify
from tests.engine.blocks import Block, build, run
from tests.engine.python_modules import image
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


class Adds(Block):
    """Its function is named in the forward, or stands on the module."""

    def forward(self, x):
        return self.b(self.a(x) + (FUNCTION if self.function is None else self.function)(*self.args))

    def __init__(self, function=None, args=(8,)):
        super().__init__()
        self.function, self.args = function, args


FUNCTION = None


class CachesOnClass(Block):
    table = None

    def forward(self, x):
        if type(self).table is None:
            CachesOnClass.table = table()
        return self.b(self.a(x) + self.table)


class CachesByMethod(Block):
    @functools.lru_cache(None)  # noqa: B019
    def table(self, side):
        return table(side)

    def forward(self, x):
        return self.b(self.a(x) + self.table(8))


class CachesOnInstance(CachesByMethod):
    def __init__(self):
        super().__init__()
        self.table = functools.lru_cache(table)


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


# Modules that a forward names or imports


UTIL = """
import functools, torch
CACHE, held = {}, None
def table(side):
    return torch.arange(side * side, dtype=torch.float64).view(side, side)
@functools.lru_cache
def in_lru_cache(side):
    return table(side)
def in_dict(side):
    if side not in CACHE:
        CACHE[side] = table(side)
    return CACHE[side]
def in_global(side):
    global held, later
    if held is None:
        held = later = table(side)
    return later
"""


class NamesModule(Block):
    def forward(self, x):
        return self.b(self.a(x) + util.get(8))  # noqa: F821


class NamesPackage(Block):
    def forward(self, x):
        return self.b(self.a(x) + planned.util.get(8))  # noqa: F821


class ImportsModule(Block):
    def forward(self, x):
        from planned import util

        return self.b(self.a(x) + util.get(8))


class ImportsFunction(Block):
    def forward(self, x):
        from planned.util import get

        return self.b(self.a(x) + get(8))


class HoldsModule(Block):
    def __init__(self):
        super().__init__()
        self.util = util  # noqa: F821

    def forward(self, x):
        return self.b(self.a(x) + self.util.get(8))


class FindsModule(Block):
    def forward(self, x):
        return self.b(self.a(x) + sys.modules["planned.util"].get(8))


@pytest.mark.parametrize("cache", ["in_lru_cache", "in_dict", "in_global"])
@pytest.mark.parametrize(
    "factory", [NamesModule, NamesPackage, ImportsModule, ImportsFunction, HoldsModule, FindsModule]
)
def test_a_cache_of_an_imported_module_holds_real_tensors(factory, cache, tmp_path, monkeypatch):
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / "__init__.py").touch()
    (tmp_path / "planned" / "util.py").write_text(f"{UTIL}\nget = {cache}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("planned", "planned.util"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if factory not in (ImportsModule, ImportsFunction):
        monkeypatch.setitem(globals(), "util", importlib.import_module("planned.util"))
        monkeypatch.setitem(globals(), "planned", importlib.import_module("planned"))
    runs_as_before(build(factory), build(factory))


# What a cache held before is the same afterwards


def noise(side):
    return torch.randn(side, side, dtype=torch.float64)


class Noises:
    made = staticmethod(functools.lru_cache(noise))


def of_one_size(side):
    return FULL(side)


FULL, BARE, ENDLESS = functools.lru_cache(1)(noise), functools.lru_cache(noise), functools.cache(noise)


class AddsNoise(Block):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.b(self.a(x) + self.function(x.shape[-1]))


@pytest.mark.parametrize("cache", [BARE, ENDLESS, Noises.made, functools.partial(BARE)])
def test_a_cache_holds_the_same_values(cache):
    model, other = build(lambda: AddsNoise(cache)), image().repeat(1, 1, 2, 2)
    first = run(model, image())
    plan(model, RECIPE, example_inputs=image())
    plan(model, RECIPE, example_inputs=other)
    assert same_bits(run(model, image()), first)
    assert run(model, other).device.type == "cpu"


def test_a_full_cache_holds_real_tensors():
    model = build(lambda: AddsNoise(of_one_size))
    run(model, image())
    plan(model, RECIPE, example_inputs=image())
    assert run(model, image()).device.type == "cpu"
