"""One example forward, with every module call recorded: who called whom, with what, and what came back.

The forward runs on meta tensors, which costs milliseconds and no memory; a model that needs real numbers (`nonzero`,
`.item()`, numpy) runs on its own tensors instead, and only shapes are kept. Either way the model is left as found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_pre_hooks as _global_pre_hooks

from simam_inject.errors import ModelError
from simam_inject.tracing.inputs import Example, copied
from simam_inject.tracing.snapshot import mode, on_meta, same_buffers, same_random_state, unchanged
from simam_inject.tracing.values import UNKNOWN, forget_data


@dataclass(slots=True, eq=False)
class Call:
    """One call of one module. All tensors here are meta tensors."""

    module: nn.Module
    args: tuple[Any, ...]
    """What `forward` receives: after the module's forward pre-hooks."""
    kwargs: dict[str, Any]
    given: tuple[tuple[Any, ...], dict[str, Any]]
    """What the caller passes: positional arguments and keywords, before the pre-hooks."""
    output: Any = UNKNOWN
    children: list[Call] = field(default_factory=list)


_patching = threading.Lock()
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def recorded_calls(calls: list[Call]) -> Iterator[None]:
    """Append to `calls` every outermost module call made inside by this thread, each with the calls it made in turn.

    Patches `nn.Module.__call__` for the time being, as `torch.fx` does: hooks would have to be put on every module and
    would run in an order that depends on the user's own hooks.
    """
    stack: list[Call] = []
    owner = threading.get_ident()

    with _patching:
        original = nn.Module.__call__

        def call_and_record(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner:
                return original(module, *args, **kwargs)
            args_given, kwargs_given = forget_data(args), forget_data(kwargs)
            call = Call(module, args_given, kwargs_given, (args_given, kwargs_given))
            (stack[-1].children if stack else calls).append(call)
            stack.append(call)
            try:
                output = _known_output(module, args, kwargs)
                if output is None:
                    with _received(call) if module._forward_pre_hooks or _global_pre_hooks else nullcontext():
                        output = original(module, *args, **kwargs)
            finally:
                stack.pop()
            call.output = forget_data(output)
            return output

        nn.Module.__call__ = call_and_record  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def _received(call: Call) -> Iterator[None]:
    """Note what `forward` receives: a hook behind the module's own, which may add arguments and change them."""
    is_noted = False

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal is_noted
        if not is_noted:  # a module that calls itself runs this hook again
            call.args, call.kwargs, is_noted = forget_data(args), forget_data(kwargs), True

    handle = call.module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _known_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """A batch norm on a meta tensor gives its like; torch works that out in Python, slowly."""
    is_plain = type(module) in _BATCH_NORMS and not module._forward_hooks and not module._forward_pre_hooks
    if not is_plain or module.training or kwargs or len(args) != 1:
        return None
    x = args[0]
    is_feature_map = isinstance(x, torch.Tensor) and x.is_meta and x.dim() >= 3
    fits = is_feature_map and module.num_features == x.shape[1] and module.running_mean is not None
    return torch.empty_like(x) if fits else None


def record(model: nn.Module, example: Example, *, training: bool = False) -> Call:
    """Run the model once, in eval mode unless told otherwise, and return the call tree. The model is left as found.

    Raises:
        ModelError: the forward raises on these inputs.
    """
    try:
        with on_meta(model):
            return _record_once(model, training, *example.fresh(_on_meta))
    except Exception:  # any operation without a meta kernel, any use of data: run it for real
        pass
    try:
        with same_buffers(model):
            return _record_once(model, training, *example.fresh(_on_device_of(model)))
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"{type(model).__name__} raises in its example forward on {example}: {type(error).__name__}: {first_line}\n"
            "  Give inputs it accepts: example_inputs=(tensor, ...), or --input-size CxHxW on the command line."
        ) from error


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor) if tensor.is_meta else tensor.to("meta")


def _on_device_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Copies tensors; makes real ones of meta ones, which are all that a pickled module keeps of its example."""
    reference = next(model.parameters(), torch.empty(0))
    noise = torch.Generator().manual_seed(0)

    def realise(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_meta or reference.is_meta:
            return copied(tensor)
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        made.copy_(torch.rand(tensor.shape, generator=noise)) if tensor.is_floating_point() else made.zero_()
        return made.to(reference.device)

    return realise


def _record_once(model: nn.Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    calls: list[Call] = []
    with ExitStack() as stack:
        for context in (
            unchanged(model),
            mode(model, training),
            same_random_state(),
            torch.no_grad(),
            recorded_calls(calls),
        ):
            stack.enter_context(context)
        model(*args, **kwargs)
    return calls[0]
