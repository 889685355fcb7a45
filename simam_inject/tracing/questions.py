"""What a forward asks of Python and of torch while it is traced, answered honestly or refused.

A proxy is no tensor, and C++ that is told otherwise casts it and crashes. So a proxy never passes for one; only the
question `isinstance(x, torch.Tensor)`, which picks a branch in many forwards, is answered for the value that the proxy
carries. What takes a proxy past `__torch_function__` into C++ becomes a node of its own or is refused.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from simam_inject.tracing.proxies import PROXIES, Refusal, ValueProxy
from simam_inject.tracing.values import UNKNOWN, leaves

if TYPE_CHECKING:
    from simam_inject.tracing.watching import Watch

_isinstance = builtins.isinstance
_LIBRARY = ("torch.", "simam_inject.")
_OURS = ("torch.fx", "simam_inject.")
"""Whoever traces: they ask what a proxy is, not what it stands for."""

_MODE_QUERIES = (
    (torch, "is_grad_enabled"),
    (torch, "is_autocast_enabled"),
    (torch, "is_inference_mode_enabled"),
    (torch.jit, "is_tracing"),
    (torch.onnx, "is_in_onnx_export"),
    (torch.compiler, "is_compiling"),
    (torch.compiler, "is_dynamo_compiling"),
    (torch.compiler, "is_exporting"),
    (torch._C, "_get_tracing_state"),
)
"""Their answers change from call to call. Not `torch.jit.is_scripting`: Python code only ever gets one."""
_MODE_SWITCHES = (
    (torch.no_grad, "__enter__"),
    (torch.enable_grad, "__enter__"),
    (torch.inference_mode, "__enter__"),
    (torch.set_grad_enabled, "__init__"),
    (torch.autocast, "__enter__"),
)
_TENSOR_MAKERS = ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "_make_subclass"))


@contextmanager
def answering(
    current: Callable[[], Watch | None], watch_of: Callable[[nn.Module], tuple[str, Watch] | None]
) -> Iterator[None]:
    """Inside, forwards that are traced get the answers of this file. Wrapped around many traces it saves time.

    Args:
        current: the watch of a forward that this thread traces now; None where everything is as always.
        watch_of: the path of a module in that forward, and the same watch.
    """
    patches: list[tuple[Any, str, Any]] = [(builtins, "isinstance", _answering_isinstance(watch_of))]
    patches += [
        (owner, name, _refusing_query(current, getattr(owner, name)))
        for owner, name in _MODE_QUERIES
        if hasattr(owner, name)
    ]
    patches += [(owner, name, _refusing_switch(current, getattr(owner, name))) for owner, name in _MODE_SWITCHES]
    for owner, name in _TENSOR_MAKERS:
        refusing: Any = _refusing_maker(name, getattr(owner, name))
        patches.append((owner, name, staticmethod(refusing) if owner is torch.Tensor else refusing))
    function = torch.autograd.Function
    patches.append((function, "apply", classmethod(_recording_apply(inspect.getattr_static(function, "apply")))))
    saved: list[tuple[Any, str, Any, bool]] = []
    try:
        for owner, name, patch in patches:
            saved.append((owner, name, vars(owner).get(name), name in vars(owner)))
            setattr(owner, name, patch)
        yield
    finally:
        for owner, name, original, is_own in reversed(saved):
            if is_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)


def _caller(depth: int = 2) -> str:
    """Name of the module whose code asks."""
    return str(sys._getframe(depth).f_globals.get("__name__", ""))


def _answering_isinstance(watch_of: Callable[[nn.Module], tuple[str, Watch] | None]) -> Callable[[Any, Any], bool]:
    """A branch on a class: answered for what a proxy carries, and noted, of proxies and of modules."""

    def is_instance(thing: Any, kinds: Any, /) -> bool:
        kind = type(thing)
        if kind not in PROXIES:
            answer = _isinstance(thing, kinds)
            found = watch_of(thing) if _isinstance(thing, nn.Module) else None
            if found is not None and found[0] and not _caller().startswith(_LIBRARY):
                found[1].classes[module_at(found[0]), classes(kinds)] = answer
            return answer
        if _caller().startswith(_OURS) or (thing.value is UNKNOWN and _caller().startswith("torch.")):
            return issubclass(kind, kinds)
        if thing.value is UNKNOWN:
            raise Refusal("asks for the class of a value that the example forward never computed")
        answer = _isinstance(thing.value, kinds)
        thing.tracer.note_class(thing, classes(kinds), answer)
        return answer

    return is_instance


def classes(kinds: Any) -> tuple[type, ...]:
    """What the second argument of `isinstance` names, one by one."""
    nested = kinds if _isinstance(kinds, tuple) else getattr(kinds, "__args__", None)
    return (kinds,) if nested is None else tuple(kind for part in nested for kind in classes(part))


def module_at(path: str) -> str:
    """`self.conv.stride`, `getattr(self.blocks, '0').scale`."""
    expression = "self"
    for name in path.split("."):
        expression = f"{expression}.{name}" if name.isidentifier() else f"getattr({expression}, {name!r})"
    return expression


def _refusing_query(current: Callable[[], Watch | None], query: Callable[..., Any]) -> Callable[..., Any]:
    """A graph would hold the answer to a question for ever."""

    @functools.wraps(query)
    def ask(*args: Any, **kwargs: Any) -> Any:
        if current() is None or _caller().partition(".")[0] == "torch":  # torch's own bookkeeping
            return query(*args, **kwargs)
        if query.__name__.endswith("_enabled"):
            raise Refusal("asks torch whether gradients or autocast are on, and branches on the answer")
        told = f"asks torch whether it is compiled or exported ({query.__name__}), and branches on the answer"
        raise Refusal(f"{told}, or runs compiled code, which asks the same")

    return ask


def _refusing_switch(current: Callable[[], Watch | None], switch: Callable[..., Any]) -> Callable[..., Any]:
    """A graph knows neither `with torch.no_grad():` nor autocast."""

    @functools.wraps(switch)
    def enter(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current() is None:
            return switch(self, *args, **kwargs)
        raise Refusal(f"switches gradients or autocast inside ({type(self).__name__})")

    return enter


def _refusing_maker(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if not _proxies(args, kwargs):
            return make(*args, **kwargs)
        raise Refusal(f"copies a value out of the graph (torch.{name})")

    return refuse


def _recording_apply(apply: Any) -> Callable[..., Any]:
    """`STE.apply(x)` is one node, so that its backward stays its own."""

    def record(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        proxies = _proxies(args, kwargs)
        if not proxies:
            return apply.__get__(None, cls)(*args, **kwargs)
        if issubclass(cls, CheckpointFunction):
            raise Refusal("runs a part of itself under torch.utils.checkpoint with use_reentrant=True")
        return proxies[0].tracer.create_proxy("call_function", application(cls), args, kwargs)

    return record


@functools.cache
def application(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """A plain function that applies a `torch.autograd.Function`: fx writes bound methods of torch's classes wrongly."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        return function.apply(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = f"{function.__name__}_apply"
    apply.__module__ = function.__module__
    return apply


def _proxies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[ValueProxy]:
    return [leaf for leaf in leaves((args, kwargs)) if type(leaf) in PROXIES]
