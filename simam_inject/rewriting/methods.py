"""The methods of a class, read without running them: which stand for `forward`, which it calls, what they name."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

from torch import fx, nn

from simam_inject.discovery.naming import value_names
from simam_inject.rewriting.classes import stock_class
from simam_inject.rewriting.records import Edit
from simam_inject.tracing.inputs import Example
from simam_inject.tracing.recording import Call, record
from simam_inject.tracing.scopes import active_method
from simam_inject.tracing.signature import call_parameters

_CHILD_TABLES = frozenset({"_modules", "children", "named_children", "modules", "named_modules"})


def alternatives(module: nn.Module) -> list[str]:
    """Methods that may run in place of the active one: `forward_*` with the same required arguments, not used by it."""
    stock = stock_class(module)
    main = active_method(module)
    used = _reachable(stock, main)
    required = _required(getattr(stock, main))
    return [
        name
        for name, function in _forwards(stock)
        if name != main and name not in used and _required(function) == required
    ]


def parts(module: nn.Module) -> list[str]:
    """Public methods that the active one may call, and anybody else too: `forward_features`, `forward_head`."""
    stock = stock_class(module)
    main = active_method(module)
    used = _reachable(stock, main)
    return [
        name
        for name, _ in _forwards(stock)
        if name not in (main, "forward") and name in used and name not in module.__dict__
    ]


def record_parts(module: nn.Module, call: Call, names: list[str]) -> dict[str, list[Call]]:
    """How one forward of the module calls its own methods, by name. The module is left as found."""
    listening = {name: _Part(getattr(module, name)) for name in names}
    module.__dict__.update(listening)
    try:
        root = record(module, Example(*call.given))
    finally:
        for name in names:
            del module.__dict__[name]
    found: dict[str, list[Call]] = {name: [] for name in names}
    _flatten(root, {id(part): name for name, part in listening.items()}, found)
    return found


class _Part(nn.Module):
    """A method in the shape of a module, so that its calls are recorded as a module's are."""

    def __init__(self, method: Callable[..., Any]) -> None:
        super().__init__()
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the method returns."""
        return self.method(*args, **kwargs)


def _flatten(call: Call, name_of: dict[int, str], found: dict[str, list[Call]]) -> None:
    """Make the children of a call those it ran by itself or through a method; calls of methods go to `found`."""
    children = []
    for child in call.children:
        if id(child.module) not in name_of:
            children.append(child)
            continue
        _flatten(child, name_of, found)
        found[name_of[id(child.module)]].append(child)
        children += child.children
    call.children = children


def lists_children(module: nn.Module, name: str) -> bool:
    """Does the method, or one it calls, go through the children of its own module, whoever they are?"""
    functions = (f for fs in _reachable(stock_class(module), name).values() for f in fs)
    return any(_asks_for_children(f) for f in functions if not (f.__module__ or "").startswith("torch.nn.modules."))


@lru_cache(maxsize=4096)
def _asks_for_children(function: types.FunctionType) -> bool:
    code = function.__code__
    own = code.co_varnames[:1]
    if not own or not _names_in(code) & _CHILD_TABLES:
        return False
    return any(
        first.opname.startswith("LOAD_")
        and second.argval in _CHILD_TABLES
        and (first.argval[-1:] if isinstance(first.argval, tuple) else (first.argval,)) == own
        for part in _codes_in(code)
        for first, second in pairwise(dis.get_instructions(part))
    )


def mentions(module: nn.Module, name: str, graph: fx.Graph, edits: tuple[Edit, ...]) -> bool:
    """Does the method, or one it calls, name a child that computes an attended value of `graph`, or is next to it?"""
    words: set[str] = set()
    for functions in _reachable(stock_class(module), name).values():
        words.update(*(_names_in(function.__code__) for function in functions))
    attended = {edit.value for edit in edits}
    concerned: set[str] = set()
    for node, value in value_names(graph).items():
        if value in attended:
            near = [node] if node.op == "call_module" else [*node.all_input_nodes, *node.users]
            concerned.update(str(other.target).partition(".")[0] for other in near if other.op == "call_module")
    return bool(words & concerned)


def _forwards(stock: type[nn.Module]) -> Iterator[tuple[str, types.FunctionType]]:
    for name in dir(stock):
        if name == "forward" or name.startswith("forward_"):
            function = inspect.getattr_static(stock, name)
            if inspect.isfunction(function) and function is not nn.Module.__dict__.get(name):
                yield name, function


def _required(function: Any) -> int:
    try:
        parameters = call_parameters(function)
    except (TypeError, ValueError):
        return -1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in parameters)


def _reachable(stock: type, name: str) -> dict[str, list[types.FunctionType]]:
    """The methods of `stock` that `name` may call, directly or not, itself included: their functions, by name.

    A method that says `super()`, or names a class it inherits from, may call what it overrides: those count as well.
    """
    found: dict[str, list[types.FunctionType]] = {}
    waiting = [name]
    while waiting:
        step = waiting.pop()
        if step in found or not inspect.isfunction(inspect.getattr_static(stock, step, None)):
            continue
        found[step] = []
        words = {"super"}
        for base in stock.__mro__:
            function = vars(base).get(step)
            if inspect.isfunction(function) and words & {"super", base.__name__}:
                wrapped = _unwrapped(function)
                found[step] += wrapped
                words = set().union(*(_names_in(each.__code__) for each in wrapped))
                waiting.extend(words)
    return found


def _unwrapped(function: types.FunctionType) -> list[types.FunctionType]:
    """The function and those that decorators hid behind it."""
    found: list[types.FunctionType] = []
    step: Any = function
    while inspect.isfunction(step) and step not in found:
        found.append(step)
        step = vars(step).get("__wrapped__")
    return found


@lru_cache(maxsize=16384)
def _names_in(code: types.CodeType) -> frozenset[str]:
    return frozenset(name for part in _codes_in(code) for name in part.co_names)


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_in(constant)
