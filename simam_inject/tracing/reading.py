"""What the code of a forward names besides its inputs: plain objects' attributes, plain globals, the type of a value.

Objects and globals tell nobody that they were read. So what counts as read is what the code names: that of the forward,
of the methods it reaches by name, and of functions of its own package.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from simam_inject.tracing.values import PLAIN_TYPES

_NO_OBJECTS = (nn.Module, torch.Tensor, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


def is_object(value: Any) -> bool:
    """A plain object with attributes, such as a configuration."""
    if isinstance(value, (*_NO_OBJECTS, types.MethodType, functools.partial)) or callable(value):
        return False
    return hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] != "torch"


@functools.lru_cache(maxsize=4096)
def reached(stock: type[nn.Module], function: Callable[..., Any]) -> tuple[types.FunctionType, ...]:
    """The functions that `function` reaches by name: methods of `stock`, and functions of its own package."""
    found: list[types.FunctionType] = []
    waiting: list[Any] = [inspect.unwrap(function)]
    while waiting:
        step = waiting.pop()
        if step in found or not isinstance(step, types.FunctionType):
            continue
        found.append(step)
        package = (step.__module__ or "").partition(".")[0]  # generated code has no module
        for name in names_in(step.__code__):
            methods = [vars(base)[name] for base in stock.__mro__ if base is not nn.Module and name in vars(base)]
            helper = step.__globals__.get(name)
            if isinstance(helper, types.FunctionType) and (helper.__module__ or "").partition(".")[0] == package:
                methods.append(helper)
            waiting += [inspect.unwrap(method) for method in methods if inspect.isfunction(method)]
    return tuple(found)


def globals_of(functions: tuple[types.FunctionType, ...]) -> Iterator[tuple[dict[str, Any], str]]:
    """(namespace, name) of every global with a plain value that the functions read."""
    seen = set()
    for function in functions:
        for name in sorted(globals_in(function.__code__)):
            space = function.__globals__
            if isinstance(space.get(name, space), PLAIN_TYPES) and (id(space), name) not in seen:
                seen.add((id(space), name))
                yield space, name


@functools.cache
def names_in(code: types.CodeType) -> frozenset[str]:
    """The attributes, globals and short texts in a piece of code and in those inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            names.add(constant)
    return frozenset(names)


@functools.cache
def globals_in(code: types.CodeType) -> frozenset[str]:
    """The globals that a piece of code and those inside it read."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (globals_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(names.union(*inner))


@functools.cache
def typed_names(code: types.CodeType) -> frozenset[str]:
    """The variables x whose `type(x)` or `x.__class__` the code asks for."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PRECALL", "PUSH_NULL")]
    found = set()
    for before, step, after in zip(steps, steps[1:], steps[2:], strict=False):
        if not step.opname.startswith("LOAD_FAST"):
            continue
        is_call = before.opname == "LOAD_GLOBAL" and before.argval == "type" and after.opname.startswith("CALL")
        if is_call or (after.opname == "LOAD_ATTR" and after.argval == "__class__"):
            found.add(str(step.argval))
    return frozenset(found)


def attributes_of(path: str, value: Any, functions: tuple[types.FunctionType, ...]) -> Iterator[tuple[str, Any]]:
    """The attributes of a plain object, and of the objects in it, that the functions name, by dotted path."""
    waiting, seen = [(path, value)], set()
    while waiting:
        path, owner = waiting.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        own = [
            function for base in type(owner).__mro__ for function in vars(base).values() if inspect.isfunction(function)
        ]
        names = frozenset[str]().union(*(names_in(function.__code__) for function in (*functions, *own)))
        shared = {key: item for key, item in vars(type(owner)).items() if not inspect.isroutine(item)}
        for name, item in {**shared, **vars(owner)}.items():
            if name not in names or name.startswith("__"):
                continue
            if is_object(item):
                waiting.append((f"{path}.{name}", item))
            else:
                yield f"{path}.{name}", item
