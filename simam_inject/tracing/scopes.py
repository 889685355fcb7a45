"""The whole model, scope by scope: every module with children, with its own graph or the reason it has none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from simam_inject.tracing.inputs import Example
from simam_inject.tracing.proxies import Refusal
from simam_inject.tracing.recording import Call, record
from simam_inject.tracing.tracer import Body, trace
from simam_inject.tracing.values import same_structure
from simam_inject.tracing.watching import watchable


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """A module with children and what its forward does."""

    path: str
    module: nn.Module
    calls: tuple[Call, ...]
    """Its calls in the example forward; empty if it never ran."""
    body: Body | None
    reason: str
    """Why `body` is None; "" otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One traced model. Valid as long as the model's modules stay as they are."""

    model: nn.Module
    example: Example
    root: Call
    scopes: dict[str, Scope]
    """By path, in the order of their first call; those that never ran come last."""
    calls: dict[int, tuple[Call, ...]]
    """All calls of a module, by `id(module)`."""
    path_of: dict[int, str]
    """First dotted path of a module, by `id(module)`."""


def trace_model(model: nn.Module, example: Example) -> Trace:
    """Run the example forward and trace every scope that ran. The model is left as found.

    Raises:
        ModelError: the model raises in its example forward.
    """
    root = record(model, example)
    calls: dict[int, list[Call]] = {}
    for call in _walk(root):
        calls.setdefault(id(call.module), []).append(call)
    modules = dict(model.named_modules())
    path_of = {id(module): path for path, module in modules.items()}
    order = {key: index for index, key in enumerate(calls)}
    with_children = [(path, module) for path, module in modules.items() if has_children(module)]
    with_children.sort(key=lambda item: order.get(id(item[1]), len(order)))
    with watchable():
        scopes = {path: trace_scope(path, module, tuple(calls.get(id(module), ()))) for path, module in with_children}
    return Trace(model, example, root, scopes, {key: tuple(found) for key, found in calls.items()}, path_of)


def trace_scope(path: str, module: nn.Module, calls: tuple[Call, ...]) -> Scope:
    """Trace one module as its first recorded call used it."""
    if not calls:
        return Scope(path, module, calls, None, "never ran in the example forward")
    first = calls[0]
    for other in calls[1:]:
        if not same_structure((first.args, first.kwargs), (other.args, other.kwargs)):
            return Scope(path, module, calls, None, "is called in different ways in one forward")
    try:
        return Scope(path, module, calls, trace(module, first, active_method(module)), "")
    except Refusal as refusal:
        return Scope(path, module, calls, None, str(refusal))


def active_method(module: nn.Module) -> str:
    """Name of the method that a call of `module` runs: `forward`, or what the instance put in its place.

    Raises:
        Refusal: the instance's `forward` is not one of its own methods.
    """
    own: Any = module.__dict__.get("forward")
    if own is None:
        return "forward"
    name = getattr(own, "__name__", "")
    if getattr(own, "__self__", None) is module and getattr(type(module), name, None) is getattr(own, "__func__", own):
        return str(name)
    raise Refusal(f"its forward was replaced on the instance by {name or type(own).__name__!r}")


def has_children(module: nn.Module) -> bool:
    """True for a module that is a scope of its own."""
    return any(child is not None for child in module._modules.values())


def _walk(call: Call) -> Iterator[Call]:
    yield call
    for child in call.children:
        yield from _walk(child)
