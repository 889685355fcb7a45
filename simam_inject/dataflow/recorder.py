"""Record one forward: which operation or module computes, returns and reads which tensor.

Tensors are identified by `id`: where an operation or a module returns one of its own inputs, the forward gets another
tensor object over the same memory. Each call of a module with children is recorded as a `torch.fx.Graph`.
"""

from __future__ import annotations

import itertools
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

from simam_inject.dataflow.axes import layout_after
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.module_kinds import function_facts, function_kind, leaf_kind
from simam_inject.dataflow.naming import Arguments, Namer
from simam_inject.dataflow.twin import Convert
from simam_inject.dataflow.values import NEVER, NOWHERE, Entries, Frame, Layout, Read, Recording, Step, Value
from simam_inject.nested import map_nested, tensors_in, tensors_of


class Recorder(Namer):
    """Records one forward of a twin; see `Namer`."""

    def __init__(self, model: nn.Module, device: torch.device | None = None) -> None:
        super().__init__(model, device)
        self.recording = Recording(self.modules, self.first_calls, self.calls)
        self.ticks = itertools.count()
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Value]] = {}
        self._storages: list[StorageWeakRef] = []
        """As long as a weak reference exists, torch does not give the address to another storage."""

    def record(self, example: Example, convert: Convert) -> Recording:
        """What one forward does; see `run`."""
        self.run(example, convert)
        # A tensor that still exists is in a list or an attribute, and may be read after the forward.
        alive = [value for tensor, value in self._known.values() if tensor() is not None and value.made != NEVER]
        self.recording.results += [value for value in alive if value not in self.recording.results]
        return self.recording

    # Values, by the identity of their tensors

    def _find(self, tensor: torch.Tensor) -> Value | None:
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _add(self, tensor: torch.Tensor, layout: Layout, tick: int) -> Value:
        storage = _storage_of(tensor)
        value = Value(tuple(tensor.shape), tensor.dtype, storage, layout, tick)
        self._known[id(tensor)] = weakref.ref(tensor), value
        if storage:
            if storage not in self.recording.by_storage:
                self._storages.append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
            self.recording.by_storage.setdefault(storage, []).append(value)
        return value

    def _value(self, tensor: torch.Tensor) -> Value:
        """The value of any tensor; one from before the forward is added now."""
        value = self._find(tensor)
        return self._add(tensor, NOWHERE, NEVER) if value is None else value

    # Operations

    def operate(self, frame: Frame, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation of a forward, and note what it reads, writes and computes."""
        tensors = [tensor for _, tensor in tensors_in((args, kwargs))]
        versions = [_version_of(tensor) for tensor in tensors]
        result = self.compute(func, args, kwargs, tensors)
        with torch._C.DisableTorchFunction():
            tick = next(self.ticks)
            inputs = [self._value(tensor) for tensor in tensors if id(tensor) not in self.states]
            for tensor, version in zip(tensors, versions, strict=True):
                if version is not None and tensor._version != version:
                    self.recording.writes.setdefault(_storage_of(tensor), []).append(tick)
            result = _with_aliases(result, tensors)
            kind = function_kind(func)
            outputs = [
                (keys, self._add(tensor, layout_after(kind, func, args, kwargs, inputs, tensor), tick))
                for keys, tensor in tensors_in(result)
            ]
            path, facts = "", function_facts(kind, args, kwargs)
            if not frame.is_scope:
                frame.computed.append((kind, facts))
            elif outputs:
                path = frame.next_path(self.name_operation(frame, func))
                step = _add(frame, "call_function", func, inputs, path, kind, outputs)
                step.source, step.facts = _source_position(frame.module), facts
                self._enter(step)
            for value in inputs:  # of its arguments and what it computes, a leaf is one reader; see `_enter_call`
                if frame.is_scope or (value.made < frame.start and value not in frame.inputs):
                    value.readings.append(Read(tick, path))
        return result

    # Module calls

    def entered(self, frame: Frame, arguments: Arguments) -> None:
        """Note what a module is given; in a scope, as steps of its forward."""
        frame.start = next(self.ticks)
        frame.graph = fx.Graph() if frame.is_scope else None
        for key, path, tensors in arguments:
            values = [(keys, self._value(tensor)) for keys, tensor in tensors]
            for keys, value in values:
                value.arguments.append((frame, key, keys))
                frame.inputs.append(value)
            if path is not None:
                self._enter(_add(frame, "placeholder", path.rpartition(".")[2], [], path, "input", values))

    def left(self, frame: Frame, path: str | None, output: Any) -> Any:
        """Note what a module returns; if it has a path, as one step of its caller."""
        frame.end = next(self.ticks)
        before = tensors_in(output)
        output = _with_aliases(output, frame.given)
        for (keys, tensor), (_, original) in zip(tensors_in(output), before, strict=True):
            value = self._find(tensor)
            if value is None:
                source = None if tensor is original else self._find(original)
                value = self._add(tensor, source.layout if source else NOWHERE, frame.end)
                value.alias_of = source
            value.returns.append((frame, keys))
            frame.outputs.append((keys, value))
        if frame.parent is None:
            found = map(self._find, tensors_of(output))  # in objects of any class, and under keys of any
            self.recording.results = [value for value in found if value is not None]
        if path is not None:
            self._enter_call(frame, path)
        return output

    def _enter_call(self, frame: Frame, path: str) -> None:
        parent, module = frame.parent, frame.module
        has_children = any(child is not None for child in module._modules.values())
        kind, facts = ("block", {}) if has_children else leaf_kind(module, frame.computed)
        step = _add(parent, "call_module", frame.path, frame.inputs, path, kind, frame.outputs, frame)
        step.facts = facts
        if parent is not None:
            step.source = _source_position(parent.module)
        if not frame.is_scope:
            for value in frame.inputs:
                value.readings.append(Read(frame.start, path))
        self._enter(step)

    def _enter(self, step: Step) -> None:
        """Add a step to its forward and to the recording, and one more for each entry of a list, tuple or dict."""
        is_origin = step.kind != "input" and (step.call is None or not step.call.is_scope)
        for _, value in step.values:
            if is_origin and value.origin is None:
                value.origin = step
        for one in (*step.entries(), step):
            self.recording.steps.setdefault(one.path, one).runs += 1
            if step.frame is None or one.value is None:
                continue
            if step.kind != "input" or id(one.value) not in step.frame.step_of:
                step.frame.step_of[id(one.value)] = one


def _add(
    frame: Frame | None,
    op: str,
    target: Callable[..., Any] | str,
    inputs: list[Value],
    path: str,
    kind: str,
    values: Entries,
    call: Frame | None = None,
) -> Step:
    """Append a step to the graph of a forward; the call of the model itself has a graph of its own."""
    graph = fx.Graph() if frame is None or frame.graph is None else frame.graph
    steps = () if frame is None else tuple(_step_of(frame, value) for value in inputs)
    return Step.add(graph, op, target, steps, path, kind, frame, values, call)


def _step_of(frame: Frame, value: Value) -> Step:
    """The step of a forward that computes a value, or gives it to the forward."""
    if id(value) not in frame.step_of:
        frame.step_of[id(value)] = _add(frame, "get_attr", "outside", [], "", "outside", [((), value)])
    return frame.step_of[id(value)]


def _version_of(tensor: torch.Tensor) -> int | None:
    """How often the tensor's memory was written; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _storage_of(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor; 0 where it has none of the usual kind."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return 0


def _with_aliases(result: Any, given: list[torch.Tensor]) -> Any:
    """The result with another tensor object in the place of every tensor that was an argument."""
    identities = {id(tensor) for tensor in given}

    def alias(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or id(leaf) not in identities:
            return leaf
        try:
            return leaf.view_as(leaf)
        except (RuntimeError, NotImplementedError):  # sparse, nested
            return leaf

    is_alias = any(id(tensor) in identities for _, tensor in tensors_in(result))
    return map_nested(alias, result) if is_alias else result


def _source_position(module: nn.Module) -> tuple[types.CodeType, int] | None:
    """Code and instruction of the method of this very module that runs the operation; None for any other place."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "simam_inject.dataflow.")):
            owner = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
            return (frame.f_code, frame.f_lasti) if owner is module else None
        frame = frame.f_back
    return None
