"""What a forward reads and does besides computing on its inputs.

Noted, so that the generated forward can check it: plain attributes of the module and of the modules below it, lengths
of containers that are iterated, the mode. Refused, since a graph would lose it or hold one answer for ever: setting
attributes, filling lists, drawing random numbers outside of the graph, gradients or autocast switched or asked for.
"""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from simam_inject.tracing.proxies import Refusal
from simam_inject.tracing.questions import answering
from simam_inject.tracing.reading import is_object
from simam_inject.tracing.values import PLAIN_TYPES

_CONSTANTS = (*PLAIN_TYPES, torch.dtype, torch.device, Enum, FunctionType, BuiltinFunctionType, type)
_OWN_ATTRIBUTES = frozenset(nn.Module().__dict__)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_CONTAINER_CODE = frozenset(
    function.__code__ for kind in _CONTAINERS for function in vars(kind).values() if isinstance(function, FunctionType)
)
IN_PLACE_OPERATORS = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul", "_setitem"}
)


@dataclass(slots=True)
class Watch:
    """What was seen while one forward was traced."""

    attributes: dict[str, Any] = field(default_factory=dict)
    """Plain attributes that were read, by dotted path from the module, with their values."""
    objects: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    """Plain objects that were read, by dotted path, and their attributes before."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Containers whose children were listed or counted, by path from the module."""
    missing: set[str] = field(default_factory=set)
    """Attributes that were asked for and are not there, by dotted path."""
    classes: dict[tuple[str, tuple[type, ...]], bool] = field(default_factory=dict)
    """What `isinstance` said of arguments and of modules, by expression and classes."""
    kinds: set[str] = field(default_factory=set)
    """Arguments from which something was computed that `isinstance` was asked about."""
    ranks: set[str] = field(default_factory=set)
    """Arguments whose rank was asked for, or the rank of something computed from them."""
    reads_training: bool = False
    is_paused: bool = False
    """True while the tracer itself computes."""
    proxy_of: Callable[[str], Any] | None = None
    """Makes the proxy of a tensor attribute, by dotted path; set by the tracer."""

    def note(self, module: nn.Module, path: str, name: str, value: Any) -> Any:
        """Note one attribute that was read, and return what the forward gets."""
        full = f"{path}.{name}" if path else name
        if name == "training":
            self.reads_training = True
            if path:
                self.attributes[full] = value
        elif name == "_modules":
            if path and isinstance(module, _CONTAINERS) and sys._getframe(2).f_code in _CONTAINER_CODE:
                self.lengths[path] = len(value)
        elif name not in _OWN_ATTRIBUTES:
            if isinstance(value, torch.Tensor) and name in module.__dict__ and self.proxy_of is not None:
                return self.proxy_of(full)
            if name in module.__dict__ and is_object(value):
                self.objects.setdefault(full, (value, dict(vars(value))))
            if is_constant(value):
                self.attributes[full] = copy.deepcopy(value)
        return value

    def note_absent(self, module: nn.Module, path: str, name: str) -> None:
        """Note a child, parameter or buffer that was asked for and is None, or an attribute that is not there."""
        full = f"{path}.{name}" if path else name
        tables = [module.__dict__[table] for table in ("_parameters", "_buffers", "_modules")]
        if not any(name in table for table in tables):
            self.missing.add(full)
        elif all(table.get(name) is None for table in tables):
            self.attributes[full] = None


def is_constant(value: Any) -> bool:
    """A value that a guard can compare."""
    kind = type(value)
    if kind in (list, tuple, set, frozenset, torch.Size):
        return all(map(is_constant, value))
    if kind is dict:
        return all(map(is_constant, value)) and all(map(is_constant, value.values()))
    return isinstance(value, _CONSTANTS)


@dataclass(slots=True)
class _Patch:
    """The patch of `nn.Module` and who is watched. It costs milliseconds, since every class of modules hears of it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    set_attribute: Callable[..., None] = nn.Module.__setattr__
    """What the patch stands in front of."""
    answers: ExitStack = field(default_factory=ExitStack)
    """Closes what `answering` opened."""
    watched: dict[int, tuple[dict[int, str], Watch]] = field(default_factory=dict)
    """By thread: the path of every watched module, by `id(module)`, and what is seen."""

    def current(self) -> Watch | None:
        """The watch of what this thread traces now; None while the tracer itself computes."""
        _, watch = self.watched.get(threading.get_ident(), (None, None))
        return None if watch is None or watch.is_paused else watch

    def find(self, module: nn.Module) -> tuple[str, Watch] | None:
        """The path and the watch of a module that this thread traces now."""
        paths, watch = self.watched.get(threading.get_ident(), (None, None))
        if paths is None or watch is None or watch.is_paused or id(module) not in paths:
            return None
        return paths[id(module)], watch


_patch = _Patch()


@contextmanager
def watchable() -> Iterator[None]:
    """Inside, reads and writes of modules' attributes can be watched. Wrapped around many traces it saves time.

    Patches `nn.Module` itself, as `torch.fx` does: the classes of modules stay what they are.
    """
    with _patch.lock:
        _patch.users += 1
        if _patch.users == 1:
            _patch.answers.enter_context(answering(_patch.current, _patch.find))
            _patch.set_attribute = nn.Module.__setattr__
            nn.Module.__getattribute__ = _read_and_note  # type: ignore[method-assign, assignment]
            nn.Module.__setattr__ = _refuse_to_set  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _patch.lock:
            _patch.users -= 1
            if _patch.users == 0:
                _patch.answers.close()
                nn.Module.__setattr__ = _patch.set_attribute  # type: ignore[method-assign]
                del nn.Module.__getattribute__


def _read_and_note(self: nn.Module, name: str) -> Any:
    value: Any
    try:
        value = object.__getattribute__(self, name)
    except AttributeError:  # a child, a parameter, a buffer, what the class's own `__getattr__` finds, or nothing
        found = None if name.startswith("__") or not _patch.watched else _patch.find(self)
        if found is None:
            raise
        try:
            value = type(self).__getattr__(self, name)
        except AttributeError:
            found[1].note_absent(self, found[0], name)
            raise
        if value is None:
            found[1].note_absent(self, found[0], name)
        return value
    if not _patch.watched or name.startswith("__"):
        return value
    found = _patch.find(self)
    return value if found is None else found[1].note(self, found[0], name, value)


def _refuse_to_set(self: nn.Module, name: str, value: Any) -> None:
    found = _patch.find(self)
    if found is None:
        return _patch.set_attribute(self, name, value)
    if _is_changed_in_place(value, f"{found[0]}.{name}" if found[0] else name):
        return None
    raise Refusal(f"sets an attribute of a module ({name})")


@contextmanager
def watched(module: nn.Module, watch: Watch) -> Iterator[None]:
    """Watch a forward of `module` that runs inside, in this thread. What it does to the module is undone.

    Raises:
        Refusal: it did something that no graph can hold.
    """
    paths = {id(part): path for path, part in module.named_modules()}
    with ExitStack() as stack:
        for context in (_same_module(module), _same_objects(watch), _same_randomness(), watchable()):
            stack.enter_context(context)
        owner = threading.get_ident()
        _patch.watched[owner] = paths, watch
        try:
            yield
        finally:
            del _patch.watched[owner]


def _is_changed_in_place(value: Any, path: str) -> bool:
    """`self.count += 1` on a tensor: the graph changes the tensor, and setting the attribute to itself is nothing."""
    if not issubclass(type(value), fx.Proxy):
        return False
    node = value.node
    first = node.args[0] if node.args else None
    is_in_place = node.op == "call_function" and getattr(node.target, "__name__", "") in IN_PLACE_OPERATORS
    return is_in_place and isinstance(first, fx.Node) and first.op == "get_attr" and first.target == path


@contextmanager
def _same_randomness() -> Iterator[None]:
    """A number drawn while tracing would be drawn once and for ever. In the graph, on proxies, nothing is drawn."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        drawn = [
            not torch.equal(torch.get_rng_state(), torch_state),
            random.getstate() != python_state,
            not all(map(np.array_equal, np.random.get_state(), numpy_state)),
        ]
        if any(drawn):
            torch.set_rng_state(torch_state)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
    if any(drawn):
        raise Refusal("draws random numbers outside of tensors that depend on the input")


@contextmanager
def _same_module(module: nn.Module) -> Iterator[None]:
    """A list or dict of the module that is filled while tracing holds proxies: emptied again, and refused."""
    attributes = dict(module.__dict__)
    contents = {name: copy.copy(value) for name, value in attributes.items() if isinstance(value, (list, dict, set))}
    try:
        yield
    finally:
        changed = [name for name, content in contents.items() if not same_items(attributes[name], content)]
        for name in changed:
            attributes[name].clear()
            (attributes[name].extend if isinstance(attributes[name], list) else attributes[name].update)(contents[name])
    if changed:
        raise Refusal(f"changes a {type(attributes[changed[0]]).__name__} of the module ({changed[0]})")


@contextmanager
def _same_objects(watch: Watch) -> Iterator[None]:
    """An object that the forward counts in: put back, and refused."""
    try:
        yield
    finally:
        changed = [path for path, (owner, before) in watch.objects.items() if not same_items(vars(owner), before)]
        for path in changed:
            owner, before = watch.objects[path]
            vars(owner).clear()
            vars(owner).update(before)
    if changed:
        raise Refusal(f"changes an object of the module ({changed[0]})")


def same_items(one: Any, other: Any) -> bool:
    """The very same objects in two lists, dicts or sets."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        return all(a is b and one[a] is other[b] for a, b in zip(one, other, strict=True))
    return all(a is b for a, b in zip(one, other, strict=True))
