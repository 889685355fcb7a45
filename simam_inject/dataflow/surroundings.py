"""Save and restore what a forward can change outside the model, so that planning has no side effects.

A twin has containers and counters of its own. Globals, class attributes, closures, default arguments, caches of
functions and settings of the process are shared with the user's code: they are saved before the forwards of a twin, and
restored after them. Of an imported module, only what the code names is saved.
"""

from __future__ import annotations

import contextvars
import copyreg
import gc
import operator
import os
import random
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import _lru_cache_wrapper, partial, partialmethod
from itertools import chain
from typing import Any

import numpy as np
import numpy.random  # now: workers of a DataLoader that are forked while a thread imports it would wait for ever
import torch
from torch import nn
from torch._dynamo import eval_frame

from simam_inject.dataflow.code_names import FOREIGN, FOREIGN_CODE, is_of, names_in, spaces_of

_CONTAINERS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
"""Their methods are used for classes derived from them too, which may have overridden `update` or `__iter__`."""
_WRAPPERS = (staticmethod, classmethod, types.MethodType, property, partial, partialmethod, tuple)
_DEPTH = 8
_MOST_ENTRIES = 10_000
_MISSING = object()
_ATOMS = (bool, int, float, complex, str, bytes, type(None))
_PLAIN = frozenset([*_ATOMS, *weakref.ProxyTypes])
"""Classes of what leads nowhere. Of a weak proxy, every other question is put to its target, which may be gone."""
SHARED: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar("shared", default=frozenset())
"""`id` of the objects of globals and classes that consist of numbers and strings: a forward may compare them by
identity with what its modules refer to, so a twin refers to the very same ones."""


uncompiled: Any = getattr(eval_frame, "_use_eager_on_nested_compile", nullcontext)
"""Context manager in which functions that `torch.compile` has made run as they are written, in this thread alone. Only
recent versions of torch have one."""


def _set_environment(saved: dict[str, str]) -> None:
    for name in os.environ.keys() - saved.keys():
        del os.environ[name]
    os.environ.update(saved)


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (partial(getattr, torch.backends.cudnn, "benchmark"), partial(setattr, torch.backends.cudnn, "benchmark")),
    (partial(getattr, torch.backends.cudnn, "deterministic"), partial(setattr, torch.backends.cudnn, "deterministic")),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (np.geterr, lambda saved: np.seterr(**saved)),
    (lambda: dict(os.environ), _set_environment),
)
"""How to read and to set what a forward may change for the whole process."""


@contextmanager
def same_random_states() -> Iterator[None]:
    """Restore the random states of torch, on all devices, of `random` and of NumPy."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if in_use else []))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        yield


@contextmanager
def same_surroundings(model: nn.Module) -> Iterator[None]:
    """Restore random states and settings, and what forwards changed outside the model: globals, classes, caches.

    Inside, compiled functions run as they are written: compiled, they would trace the hooks that watch a forward.
    """
    reachable = _Reachable(model)
    with ExitStack() as stack:  # restores everything, also if one step raises
        stack.enter_context(uncompiled())
        stack.callback(SHARED.reset, SHARED.set(frozenset(reachable.shared)))
        stack.enter_context(same_random_states())
        for read, write in _SETTINGS:
            stack.callback(_restore_setting, read, write, read())
        for restore in reachable.restore:
            stack.callback(restore)
        yield


class _Reachable:
    """Walks from the classes, hooks and functions of a model to everything that their code can name, and saves it."""

    def __init__(self, model: nn.Module) -> None:
        self.restore: list[Callable[[], None]] = []
        modules = list(model.modules())
        self.seen = set(map(id, modules))
        """What is not visited again; the modules themselves have twins."""
        self.waiting: deque[tuple[Any, int]] = deque()
        self.alive: list[Any] = []
        """What was visited, so that no `id` is used twice."""
        self.shared: set[int] = set()
        attributes = [each for module in modules for each in vars(module).values() if type(each) not in _PLAIN]
        self.imported = [value for value in attributes if isinstance(value, types.ModuleType)]
        for kind in {kind for module in modules for kind in type(module).__mro__}:
            self.visit(kind, 0)
        for value in attributes:  # functions, also in tables of hooks; of other objects, their classes
            for item in value.values() if isinstance(value, dict) else (value,):
                is_code = isinstance(item, (types.FunctionType, types.MethodType, partial, _lru_cache_wrapper))
                self.visit(item if is_code else type(item), 0)
        for name, hooks in vars(nn.modules.module).items():
            if name.startswith("_global_") and isinstance(hooks, dict):  # hooks of all modules run in twins too
                for hook in hooks.values():
                    self.visit(hook, 0)
        while self.waiting:  # near things first: `seen` must not cut off what they lead to
            self._save(*self.waiting.popleft())

    def visit(self, value: Any, depth: int) -> None:
        """Save one thing later, and what can be reached from it."""
        if type(value) in _PLAIN or isinstance(value, (*_ATOMS, types.ModuleType)):
            return
        if depth > _DEPTH or id(value) in self.seen:
            return
        self.seen.add(id(value))
        self.alive.append(value)
        self.waiting.append((value, depth))

    def _save(self, value: Any, depth: int) -> None:
        for kinds, save in self._savers:
            if isinstance(value, kinds):
                save(self, value, depth)
                return
        attributes = self._attributes(value, depth)
        if attributes is not None and all(isinstance(each, _ATOMS) for each in attributes):
            self.shared.add(id(value))

    def _attributes(self, value: Any, depth: int) -> list[Any] | None:
        """Save and return the values in the `__dict__` and the slots of an object; None if it has neither."""
        kind, attributes = type(value), getattr(value, "__dict__", None)
        if is_of(FOREIGN, kind.__module__):
            return None
        self.visit(kind, depth + 1)
        names = copyreg._slotnames(kind)  # type: ignore[attr-defined] # of which a subclass may have made a property
        slots = [name for name in names if isinstance(getattr(kind, name, None), types.MemberDescriptorType)]
        if not slots and attributes is None:
            return None
        write, delete = partial(object.__setattr__, value), partial(object.__delattr__, value)
        found = self._names(lambda: slots, partial(getattr, value), write, delete, depth)
        if isinstance(attributes, dict):
            found += attributes.values()
            self.visit(attributes, depth + 1)
        return found

    def _names(
        self,
        names: Callable[[], Iterable[str]],
        read: Callable[[str, Any], Any],
        write: Callable[[str, Any], None],
        delete: Callable[[str], None],
        depth: int,
    ) -> list[Any]:
        """Save and return the values of these names. What is added there is deleted, submodules excepted."""
        before = {name: read(name, _MISSING) for name in names()}

        def restore() -> None:
            for name in [*before, *(set(names()) - before.keys())]:
                saved, now = before.get(name, _MISSING), read(name, _MISSING)
                if saved is _MISSING and now is not _MISSING and not isinstance(now, types.ModuleType):
                    delete(name)
                elif saved is not now and saved is not _MISSING:
                    write(name, saved)

        self.restore.append(restore)
        found = [value for value in before.values() if value is not _MISSING]
        for value in found:
            self.visit(value, depth + 1)
        return found

    def _wrapper(self, wrapper: Any, depth: int) -> None:
        for part in gc.get_referents(wrapper)[:_MOST_ENTRIES]:
            self.visit(part, depth)

    def _cache(self, function: Any, depth: int) -> None:
        """An `lru_cache`. Only the garbage collector knows its dict, which it lists after all results."""
        parts, info = gc.get_referents(function), function.cache_info()
        table = [part for part in parts if type(part) is dict and part is not function.__dict__][-1]
        before = set(table)

        def restore() -> None:
            added = function.cache_info().misses - info.misses
            if added and (not before or not 0 < added <= info.maxsize - len(before)):  # it may have dropped some
                function.cache_clear()
            for key in table.keys() - before:
                del table[key]

        if info.maxsize is not None:  # its entries are links of a list; without a limit it is a dict like any other
            self.restore.append(restore)
            self.seen.add(id(table))
        for part in parts:
            if type(part) is not tuple:  # the arguments of a call
                self.visit(part, depth)

    def _variable(self, variable: contextvars.ContextVar[Any], _depth: int) -> None:
        with suppress(LookupError):  # it has no value, and no default
            self.restore.append(partial(variable.reset, variable.set(variable.get())))

    def _function(self, function: types.FunctionType, depth: int) -> None:
        if is_of(FOREIGN_CODE, function.__module__):
            return
        names = names_in(function.__code__)
        contents = []
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                contents.append(cell.cell_contents)
                self.restore.append(partial(setattr, cell, "cell_contents", contents[-1]))
        for space in spaces_of(function, names, [*contents, *self.imported]):
            self._names(lambda: names, space.get, space.__setitem__, space.__delitem__, depth)
        for item in (*contents, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.visit(item, depth + 1)
        self.visit(function.__dict__, depth)

    def _container(self, container: Any, depth: int) -> None:
        kind = next(kind for kind in _CONTAINERS if isinstance(container, kind))
        saved = _content(kind, container)
        self.restore.append(partial(_refill, kind, container, saved))
        if kind.__len__(container) <= _MOST_ENTRIES:
            for item in saved[1::2] if issubclass(kind, dict) else saved:
                self.visit(item, depth + 1)
        self._attributes(container, depth)

    def _array(self, array: np.ndarray[Any, Any], _depth: int) -> None:
        if not array.flags.writeable or array.dtype.hasobject:
            return
        saved = array.copy()

        def restore() -> None:
            if not np.array_equal(array, saved):
                array[...] = saved

        self.restore.append(restore)

    def _tensor(self, tensor: torch.Tensor, _depth: int) -> None:
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            return
        if tensor.is_inference() or tensor.is_meta or tensor.is_nested:
            return
        with suppress(NotImplementedError):  # torch copies no int4
            self.restore.append(partial(_restore_tensor, tensor, tensor._version, tensor.detach().clone()))

    def _module(self, network: nn.Module, depth: int) -> None:
        """One outside of the model. Libraries do not write to parameters, which may be large, in a forward."""
        for module in network.modules():
            if module is network or id(module) not in self.seen:
                self.seen.add(id(module))
                if is_of(FOREIGN, type(module).__module__):
                    self.seen.add(id(module._parameters))
                self.visit(type(module), depth + 1)
                self._container(vars(module), depth)

    def _class(self, kind: type, depth: int) -> None:
        if not is_of(FOREIGN_CODE, kind.__module__):
            write, delete = partial(setattr, kind), partial(delattr, kind)
            self._names(lambda: list(vars(kind)), vars(kind).get, write, delete, depth)

    _savers: tuple[tuple[Any, Callable[[_Reachable, Any, int], None]], ...] = (
        (types.FunctionType, _function),
        (_WRAPPERS, _wrapper),
        (_lru_cache_wrapper, _cache),
        (_CONTAINERS, _container),
        (torch.Tensor, _tensor),
        (torch.jit.ScriptModule, lambda *_: None),
        (nn.Module, _module),
        (np.ndarray, _array),
        (contextvars.ContextVar, _variable),
        (type, _class),
    )


def _restore_tensor(tensor: torch.Tensor, version: int, saved: torch.Tensor) -> None:
    if (tensor.shape, tensor.dtype, tensor.device) != (saved.shape, saved.dtype, saved.device):
        tensor.data = saved
        return
    with suppress(NotImplementedError):  # torch compares no sparse, complex32 and float4 tensors
        if tensor._version != version or not torch.equal(tensor, saved):  # by its `data`
            tensor.data.copy_(saved)


def _content(kind: Any, container: Any) -> tuple[Any, ...]:
    """The entries of a container; of a dict, each key and then its value."""
    return tuple(chain.from_iterable(kind.items(container)) if issubclass(kind, dict) else kind.__iter__(container))


def _refill(kind: Any, container: Any, saved: tuple[Any, ...]) -> None:
    now = _content(kind, container)
    if len(now) == len(saved) and all(map(operator.is_, now, saved)):
        return
    kind.clear(container)
    if issubclass(kind, dict):
        for key, value in zip(saved[::2], saved[1::2], strict=True):
            kind.__setitem__(container, key, value)
    else:
        (kind.update if kind is set else kind.extend)(container, saved)


def _restore_setting(read: Callable[[], Any], write: Callable[[Any], Any], saved: Any) -> None:
    if read() != saved:
        write(saved)
