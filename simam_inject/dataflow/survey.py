"""Record one forward of a twin without SimAM, note the shapes of a few at other sizes, and find the sites."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._guards import TracingContext
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from simam_inject.dataflow.axes import SAMPLES_ADDED
from simam_inject.dataflow.example import SPATIAL, Example
from simam_inject.dataflow.module_kinds import module_kind
from simam_inject.dataflow.naming import Namer
from simam_inject.dataflow.recorder import Recorder
from simam_inject.dataflow.sites import Dataflow, Surveyor
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.twin import Convert, set_mode, to_clone, to_sketch, twin_of
from simam_inject.dataflow.values import Recording, Shape, covers
from simam_inject.errors import ModelError, describe_exception
from simam_inject.kinds import FAMILIES


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
        ModelError: a forward is being traced in this thread, the model cannot be run on the example, or its first
            forward adds layers.
    """
    # Other threads may compile meanwhile: `torch.compiler.is_compiling` is true of all of them.
    contexts = TracingContext.try_get(), get_proxy_mode(), torch._C._get_tracing_state()
    if torch.compiler.is_dynamo_compiling() or is_fx_symbolic_tracing() or any(one is not None for one in contexts):
        raise ModelError("a forward is being traced; call inject, plan and verify outside of tracing")
    flow = None
    with same_surroundings(model):
        with suppress(Exception):  # it looks at values, or uses operations that have no meta form
            flow = None if with_values else _survey(model, example, strip, to_sketch)
        try:
            flow = flow or _survey(model, example, strip, to_clone)
        except Exception as error:
            raise cannot_run(model, example, error) from error
    there, twin = {path for path, _ in model.named_modules()}, flow.recording.modules[""]
    added = [path for path, module in twin.named_modules() if module._parameters and path not in there]
    if added:
        raise ModelError(f"the first forward of this model adds a layer ({added[0]}): run one forward, then inject")
    return flow


def cannot_run(model: nn.Module, example: Example, error: Exception) -> ModelError:
    """The error for a model that raises on an example."""
    if isinstance(error, TorchDynamoException):
        return ModelError(
            f"{type(model).__name__} compiles a part of its forward when it runs (torch.cond, "
            f"torch.while_loop, flex_attention), so its forward cannot be recorded: {describe_exception(error):.250}"
        )
    if isinstance(error, NotImplementedError) and f"Module [{type(model).__name__}] is missing" in str(error):
        parts = " or ".join(f"model.{name}" for name, _ in model.named_children())
        return ModelError(f"{type(model).__name__} has no forward: use the part that has one ({parts or 'none here'})")
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in example.tensors)
    is_list = bool(example.args) and isinstance(example.args[0], list)
    return ModelError(
        f"{type(model).__name__} cannot be run on the example input ({shapes or 'no tensors'}): "
        f"{describe_exception(error):.250}. Give inputs that it takes, with example_inputs=... in Python or "
        f"--input-size on the command line{'; a list is one argument, a tuple holds several' if is_list else ''}"
    )


def _survey(model: nn.Module, example: Example, strip: Callable[[nn.Module], object], convert: Convert) -> Dataflow:
    def new_twin() -> nn.Module:
        twin = twin_of(model, convert)
        strip(twin)
        set_mode(twin, training=False)
        return twin

    given = Example(*example.fresh(convert))
    recorder = Recorder(new_twin())
    base = recorder.record(example, convert)
    if convert is not to_clone and recorder.asks_for_values:
        raise ModelError("the forward depends on values, and catches the error that there are none")

    def again(other: Example | None, twin: nn.Module) -> Namer | None:
        """The forward on another example; None where the model takes no such one."""
        namer = Namer(twin)
        try:
            return None if other is None else namer.run(other, convert)
        except Exception:
            return None

    twin, larger = recorder.model, given.with_batch(SAMPLES_ADDED)
    both = again(larger and larger.with_size(), twin)
    if both is not None and both.calls == base.calls and _has_same_names(base, both):
        apart = _apart(base, both)
        if apart is not None:
            return Surveyor(twin, example, base, *apart).survey()
    batch = again(larger, twin)
    is_cached = batch is not None and not _has_same_names(base, batch)
    if is_cached:  # the first forward filled a cache, so that names mean other values: run on twins with empty caches
        batch = again(larger, new_twin())
    sizes = (again(given.with_size(spatial), new_twin() if is_cached else twin) for spatial in SPATIAL)
    size = next((found.shapes for found in sizes if found is not None and not _has_more_samples(base, found)), None)
    samples = dict[str, Shape]()
    if batch is not None:  # what runs more often then, runs once for each sample
        often = {path for path, count in batch.calls.items() if count > base.calls[path]}
        samples = {path: shape for path, shape in batch.shapes.items() if not covers(often, path.partition("[")[0])}
    return Surveyor(twin, example, base, samples, size).survey()


def _has_more_samples(base: Recording, larger: Namer) -> bool:
    """A larger image became more samples of the same size, as `x.view(-1, 3, 32, 32)` makes of it."""

    def is_more(path: str) -> bool:
        value, shape = base.value(path), larger.shapes.get(path, ())
        return value is not None and shape[1:] == value.shape[1:] and shape[:1] > value.shape[:1]

    maps = [path for path, call in base.first_calls.items() if module_kind(call.module) in FAMILIES["conv"]]
    results = [path for path in larger.shapes if path[:1] in ("", ":")]
    return bool(maps) and all(map(is_more, maps)) and any(map(is_more, results))


def _has_same_names(base: Recording, other: Namer) -> bool:
    return all(other.names_in(path) == call.names for path, call in base.first_calls.items())


def _apart(base: Recording, both: Namer) -> tuple[dict[str, Shape], dict[str, Shape]] | None:
    """Shapes for more samples, and shapes for a larger image, from a forward on more samples of a larger image.

    None if they do not follow from it: the first dimension of a map grew by another number than that of the samples, or
    another dimension by this number. Most networks need no other forward.
    """
    samples, sizes = dict[str, Shape](), dict[str, Shape]()
    for path, found in both.shapes.items():
        value = base.value(path)
        if value is None or len(found) != len(value.shape):
            return None
        if len(found) > 2:
            first, *others = (after - before for after, before in zip(found, value.shape, strict=True))
            if first not in (0, SAMPLES_ADDED) or SAMPLES_ADDED in others:
                return None
        samples[path], sizes[path] = (*found[:1], *value.shape[1:]), (*value.shape[:1], *found[1:])
    return samples, sizes
