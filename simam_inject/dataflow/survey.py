"""Record a model without its SimAM: three forwards of a twin, and the sites that follow from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx._symbolic_trace as symbolic
from torch import nn

from simam_inject.dataflow.axes import SAMPLES_ADDED
from simam_inject.dataflow.example import SPATIAL, Example
from simam_inject.dataflow.recorder import Recorder
from simam_inject.dataflow.sites import Dataflow, Surveyor
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.twin import Convert, set_mode, to_clone, to_meta, twin_of
from simam_inject.dataflow.values import Recording
from simam_inject.errors import ModelError, describe_exception


def survey_model(
    model: nn.Module, example: Example, strip: Callable[[nn.Module], object], *, with_values: bool = False
) -> Dataflow:
    """Record the model's forward in eval mode on twins; the model, the example and other threads notice nothing.

    Args:
        model: any network with real tensors.
        example: arguments of one forward.
        strip: takes SimAM out of a twin.
        with_values: run with real tensors at once, instead of only where the forward raises without their values.

    Raises:
        ModelError: a forward is being traced in this thread, or the model cannot be run on the example.
    """
    _refuse_while_tracing()
    with same_surroundings(model), without_compiling(model):
        try:
            if not with_values:
                return _survey(model, example, strip, to_meta)
        except Exception:  # it looks at values, or uses operations that have no meta form: run with real tensors
            pass
        try:
            return _survey(model, example, strip, to_clone)
        except Exception as error:
            raise cannot_run(model, example, error) from error


def cannot_run(model: nn.Module, example: Example, error: Exception) -> ModelError:
    """The error for a model that raises on an example."""
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in example.tensors)
    return ModelError(
        f"{type(model).__name__} cannot be run on the example input ({shapes or 'no tensors'}): "
        f"{describe_exception(error):.250}. Give inputs that it takes, with example_inputs=... in Python or "
        "--input-size on the command line"
    )


def _survey(model: nn.Module, example: Example, strip: Callable[[nn.Module], object], convert: Convert) -> Dataflow:
    twin = twin_of(model, convert)
    strip(twin)
    set_mode(twin, training=False)
    recorder = Recorder(twin, torch.device("meta") if convert is to_meta else None)

    def attempt(given: Example | None) -> Recording | None:
        if given is None:
            return None
        try:
            return recorder.record(given, convert, with_graphs=False)
        except Exception:  # the model takes one size only, or counts its samples
            return None

    with recorder.watching():
        base = recorder.record(example, convert)
        if convert is to_meta and recorder.asks_for_values:
            raise ModelError("the forward depends on values, and catches the error that there are none")
        batch = attempt(example.with_batch(SAMPLES_ADDED))
        if batch is not None and not _differ(base, batch):  # the example's samples are counted in another way
            batch = None
        sizes = (attempt(example.with_size(spatial)) for spatial in SPATIAL)
        size = next((recording for recording in sizes if recording is not None), None)
    return Surveyor(twin, example, base, batch, size).survey()


def _differ(one: Recording, other: Recording) -> bool:
    """Some value has another shape."""
    return any(value.shape != other.values[path].shape for path, value in one.values.items() if path in other.values)


@contextmanager
def without_compiling(model: nn.Module) -> Iterator[None]:
    """Parts that are compiled run as they are written: a recording is not to be compiled.

    The stance of the compiler belongs to the whole process, so the last thread that is done puts it back.
    """
    if not any(type(module).__name__ == "OptimizedModule" for module in model.modules()):
        yield
        return
    with _EAGER:
        if not _eager:
            _eager.append(torch.compiler.set_stance("force_eager"))
        _eager.append(None)
    try:
        yield
    finally:
        with _EAGER:
            _eager.pop()
            if len(_eager) == 1:
                _eager.pop().__exit__(None, None, None)


_EAGER = threading.Lock()
_eager: list[Any] = []
"""The stance, while it is set, and an entry for each recording that needs it."""


def _refuse_while_tracing() -> None:
    tracing = (
        torch._C._get_tracing_state() is not None
        or torch.compiler.is_compiling()
        or bool(getattr(symbolic, "_is_fx_tracing_flag", False))
    )
    if tracing:
        raise ModelError("a forward is being traced; call inject, plan and verify outside of tracing")
