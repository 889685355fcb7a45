"""What a forward can reach outside the model, and what it must find again afterwards: planning leaves no trace.

A twin has containers and counters of its own. Globals, class attributes, closures, default arguments and caches of
functions belong to everybody: they are noted before the forwards of a twin, and put back after them.
"""

from __future__ import annotations

import contextvars
import copy
import gc
import random
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import _lru_cache_wrapper, partial, partialmethod
from typing import Any

import numpy as np
import torch
from torch import nn

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
_WRAPPERS = (staticmethod, classmethod, types.MethodType, property, partial, partialmethod, tuple)
_FOREIGN = frozenset({"torch", "numpy", "logging", "threading", "typing", "collections", "re", "os", "sys", "builtins",
                      "abc", "functools", "enum", "simam_inject", "lightning", "pydantic"})  # fmt: skip
"""Libraries whose state no forward of a user's network is expected to change."""
_DEPTH = 8
_MOST_ENTRIES = 256
_MISSING = object()
_ATOMS = (bool, int, float, complex, str, bytes, type(None))
SHARED: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar("shared", default=frozenset())
"""`id` of objects of numbers and names alone that globals or classes hold: a forward may compare by identity what its
modules hold with them, so twins hold the very same ones."""


@contextmanager
def same_surroundings(model: nn.Module) -> Iterator[None]:
    """Restore random states, and what forwards changed outside the model: globals, class attributes, caches."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    reachable = _Reachable(model)
    with ExitStack() as stack:  # puts everything back, also if one step raises
        stack.callback(SHARED.reset, SHARED.set(frozenset(reachable.shared)))
        stack.enter_context(torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if in_use else []))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        for put_back in reachable.undo:
            stack.callback(put_back)
        yield


class _Reachable:
    """Walks from the classes, hooks and functions of a model to everything that their code can name."""

    def __init__(self, model: nn.Module) -> None:
        self.undo: list[Callable[[], None]] = []
        self.seen = {id(module) for module in model.modules()}
        """What needs no look; the modules themselves have twins."""
        self.alive: list[Any] = []
        self.shared: set[int] = set()
        for kind in {kind for module in model.modules() for kind in type(module).__mro__}:
            self.visit(kind, 0)
        for module in model.modules():
            for value in module.__dict__.values():
                self._visit_code(value)

    def _visit_code(self, value: Any) -> None:
        """Functions that stand on a module, or in one of its tables of hooks; the classes of objects that do."""
        for item in value.values() if isinstance(value, dict) else (value,):
            is_code = isinstance(item, (types.FunctionType, types.MethodType, partial, _lru_cache_wrapper))
            self.visit(item if is_code else type(item), 0)

    def visit(self, value: Any, depth: int) -> None:
        """Note one thing, and what can be reached from it."""
        if depth > _DEPTH or id(value) in self.seen or isinstance(value, (str, int, float, types.ModuleType)):
            return
        self.seen.add(id(value))
        self.alive.append(value)
        for kinds, note in self._notes:
            if isinstance(value, kinds):
                note(self, value, depth)
                return
        if not _is_foreign(type(value)) and hasattr(value, "__dict__"):
            self.visit(type(value), depth + 1)
            self._container(value.__dict__, depth + 1)
            if all(isinstance(held, _ATOMS) for held in value.__dict__.values()):
                self.shared.add(id(value))

    def _wrapper(self, wrapper: Any, depth: int) -> None:
        for part in gc.get_referents(wrapper)[:_MOST_ENTRIES]:
            self.visit(part, depth)

    def _cache(self, function: Any, depth: int) -> None:
        misses = function.cache_info().misses
        self.undo.append(lambda: function.cache_clear() if function.cache_info().misses > misses else None)
        self.visit(function.__wrapped__, depth)

    def _variable(self, variable: contextvars.ContextVar[Any], _depth: int) -> None:
        try:
            token = variable.set(variable.get())
        except LookupError:  # it has no value, and no default
            return
        self.undo.append(lambda: variable.reset(token))

    def _function(self, function: types.FunctionType, depth: int) -> None:
        if _is_foreign(function):
            return
        names = function.__globals__
        before = {name: names[name] for name in _names_in(function.__code__) if name in names}
        self.undo.append(partial(_put_back, names.get, names.__setitem__, before))
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for item in (*before.values(), *defaults):
            self.visit(item, depth + 1)
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self.visit(content, depth + 1)
            self.undo.append(partial(setattr, cell, "cell_contents", content))
        self._container(function.__dict__, depth)

    def _container(self, container: Any, depth: int) -> None:
        if type(container) not in _CONTAINERS:
            return
        self.undo.append(partial(_refill, container, copy.copy(container)))
        if len(container) <= _MOST_ENTRIES:
            for item in list(container.values() if isinstance(container, dict) else container):
                self.visit(item, depth + 1)

    def _tensor(self, tensor: torch.Tensor, _depth: int) -> None:
        if tensor.is_inference() or type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.is_meta:
            return
        version, saved = tensor._version, tensor.detach().clone()

        def put_back() -> None:
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(saved)

        self.undo.append(put_back)

    def _class(self, kind: type, depth: int) -> None:
        if _is_foreign(kind):
            return
        before = dict(vars(kind))

        def put_back() -> None:
            for name in [name for name in vars(kind) if name not in before]:
                delattr(kind, name)
            _put_back(vars(kind).get, partial(setattr, kind), before)

        self.undo.append(put_back)
        for value in before.values():
            self.visit(value, depth + 1)

    _notes: tuple[tuple[Any, Callable[[_Reachable, Any, int], None]], ...] = (
        (types.FunctionType, _function),
        (_WRAPPERS, _wrapper),
        (_lru_cache_wrapper, _cache),
        (_CONTAINERS, _container),
        (torch.Tensor, _tensor),
        (contextvars.ContextVar, _variable),
        (type, _class),
    )


def _is_foreign(value: Any) -> bool:
    return str(getattr(value, "__module__", "builtins")).partition(".")[0] in _FOREIGN


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names_in(const)


def _put_back(get: Callable[[str, Any], Any], put: Callable[[str, Any], None], before: dict[str, Any]) -> None:
    for name, value in before.items():
        if get(name, _MISSING) is not value:
            put(name, value)


def _refill(container: Any, saved: Any) -> None:
    is_same = len(container) == len(saved) and all(a is b for a, b in zip(container, saved, strict=True))
    if is_same and isinstance(container, dict):
        is_same = all(container[key] is saved[key] for key in saved)
    if not is_same:
        container.clear()
        (container.update if isinstance(container, (dict, set)) else container.extend)(saved)
