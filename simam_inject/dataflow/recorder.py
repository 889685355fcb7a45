"""Record one forward: which operation or module computes, returns and reads which tensor.

Tensors are identified by `id`: where an operation or a module returns one of its own inputs, the forward gets another
tensor object over the same memory. Each call of a module with children is recorded as a list of steps, of which
`Frame.graph` makes a `torch.fx.Graph`.
"""

from __future__ import annotations

import itertools
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from simam_inject.dataflow.axes import layout_after
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.module_kinds import conv_facts, function_facts, function_kind, leaf_kind
from simam_inject.dataflow.naming import Arguments, Namer, Tensors, arguments_in
from simam_inject.dataflow.twin import Convert
from simam_inject.dataflow.values import NEVER, NOWHERE, Frame, Layout, Read, Recording, Step, Value, keyed
from simam_inject.kinds import KINDS
from simam_inject.modules import has_children
from simam_inject.nested import map_nested, tensors_in, tensors_of, version_of


class Recorder(Namer):
    """Records one forward of a twin; see `Namer`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.recording = Recording(self.modules, self.first_calls, self.calls)
        self.ticks = itertools.count()
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Value]] = {}
        self._inner: dict[int, tuple[weakref.ref[torch.Tensor], Value]] = {}
        """Values that transforms of torch.func wrap, by the tensors inside, which they return in the end."""
        self._storages: list[StorageWeakRef] = []
        """As long as a weak reference exists, torch does not give the address to another storage."""

    def record(self, example: Example, convert: Convert) -> Recording:
        """What one forward does; see `run`."""
        self.run(example, convert)
        # A tensor that still exists is in a list or an attribute, and may be read after the forward.
        alive = [value for tensor, value in self._known.values() if tensor() is not None and value.made != NEVER]
        alive = [value for value in alive if not self._is_overwritten(value)]
        self.recording.results += [value for value in alive if value not in self.recording.results]
        return self.recording

    def _is_overwritten(self, value: Value) -> bool:
        """An in-place operation made another value of the whole tensor, which keeps it alive: `out += x`."""
        writes = self.recording.writes.get(value.storage, ())
        others = self.recording.by_storage[value.storage] if writes else ()
        return any(one.made > value.made and one.made in writes and one.shape == value.shape for one in others)

    # Values, by the identity of their tensors

    def _find(self, tensor: torch.Tensor, *, is_inner: bool = False) -> Value | None:
        entry = (self._inner if is_inner else self._known).get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _add(self, tensor: torch.Tensor, layout: Layout, tick: int, is_constant: bool = False) -> Value:
        storage = storage_of(tensor)
        value = Value(tuple(tensor.shape), tensor.dtype, storage, layout, tick, is_constant=is_constant)
        self._known[id(tensor)] = weakref.ref(tensor), value
        inner = _inside(tensor)
        for other in (self._find(tensor, is_inner=True), *map(self._find, inner)):
            if other is not None:  # vmap, vjp and the like take it, or return it
                other.readings.append(Read(next(self.ticks), ""))
        self._inner |= {id(one): (weakref.ref(one), value) for one in inner}
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
        tensors = arguments_in(args, kwargs)
        versions = [version_of(tensor) for tensor in tensors]
        result = self.compute(func, args, kwargs, tensors)
        with torch._C.DisableTorchFunction():
            tick = next(self.ticks)
            inputs = [self._value(tensor) for tensor in tensors if id(tensor) not in self.states]
            for tensor, version in zip(tensors, versions, strict=True):
                if version is not None and tensor._version != version and (storage := storage_of(tensor)):
                    self.recording.writes.setdefault(storage, []).append(tick)
                    for value in self.recording.by_storage.get(storage, ()):  # anything may be in it now
                        value.is_constant = False
            result, computed = _with_aliases(result, tensors)
            kind = function_kind(func)
            takes_size = kind.endswith("_like") or kind.startswith("new_")
            is_constant = takes_size or all(value.is_constant for value in inputs)
            outputs = [
                (keys, self._add(tensor, layout_after(kind, func, args, kwargs, inputs, tensor), tick, is_constant))
                for keys, tensor in computed
            ]
            path, facts = "", function_facts(func, args, kwargs)
            if not frame.is_scope:
                frame.computed.append((kind, facts))
            elif outputs:
                path = frame.next_path(self.name_operation(frame, func))
                source = _source_position(frame.module)
                self._enter(Step(path, kind, frame, _steps_of(frame, inputs), outputs, None, func, source, facts))
            for value in inputs:  # of its arguments and what it computes, a leaf is one reader; see `_enter_call`
                if frame.is_scope or (value.made < frame.start and value not in frame.inputs):
                    value.readings.append(Read(tick, path))
        return result

    # Module calls

    def entered(self, frame: Frame, arguments: Arguments) -> None:
        """Note what a module is given; in a scope, as steps of its forward."""
        frame.start = next(self.ticks)
        for key, path, tensors in arguments:
            values = [(keys, self._value(tensor)) for keys, tensor in tensors]
            for keys, value in values:
                value.arguments.append((frame, key, keys))
                frame.inputs.append(value)
            if path is not None:
                self._enter(Step(path, "input", frame, (), values))

    def left(self, frame: Frame, path: str | None, output: Any) -> Any:
        """Note what a module returns; if it has a path, as one step of its caller."""
        frame.end = next(self.ticks)
        originals = tensors_in(output)
        output, returned = _with_aliases(output, frame.given)
        for (keys, tensor), (_, original) in zip(returned, originals, strict=True):
            value = self._find(tensor)
            if value is None:
                source = None if tensor is original else self._find(original)
                value = self._add(tensor, source.layout if source else NOWHERE, frame.end)
                value.alias_of, value.is_constant = source, source is not None and source.is_constant
            value.returns.append((frame, keys))
            frame.outputs.append((keys, value))
        if frame.parent is None:
            found = map(self._find, tensors_of(output))  # in objects of any class, and under keys of any
            self.recording.results = [value for value in found if value is not None]
        if path is not None:
            self._enter_call(frame, path)
        return output

    def _enter_call(self, frame: Frame, path: str) -> None:
        parent, is_block = frame.parent, frame.is_scope and has_children(frame.module)
        kind, facts = ("block", {}) if is_block else leaf_kind(frame.module, frame.computed, len(frame.inputs))
        facts = {**facts, **conv_facts(frame.module)}
        is_passed = not frame.computed and len(frame.inputs) == 1 and any(value.alias_of for _, value in frame.outputs)
        kind = "identity" if is_passed and not is_block and kind not in KINDS else kind
        inputs = () if parent is None else _steps_of(parent, frame.inputs)
        source = None if parent is None else _source_position(parent.module)
        if not frame.is_scope:
            for value in frame.inputs:
                value.readings.append(Read(frame.start, path))
        self._enter(Step(path, kind, parent, inputs, frame.outputs, frame, None, source, facts))

    def _enter(self, step: Step) -> None:
        """Add a step to its forward and to the recording, and one more for each entry of a list, tuple or dict."""
        is_origin = step.kind != "input" and step.is_leaf
        for _, value in step.values:
            if is_origin and value.origin is None:
                value.origin = step
        frame, is_given = step.frame, step.kind == "input"
        entries = [
            Step(keyed(step.path, keys), "entry", frame, (step,), [((), value)]) for keys, value in step.values if keys
        ]
        for one in (*entries, step):
            first = self.recording.steps.setdefault(one.path, one)
            first.runs += 1
            first.later += [one] if one is not first else []
            if first.value is not None and one.value is not None:
                first.varies |= first.value.shape[1:] != one.value.shape[1:]
            if frame is not None and frame.is_scope:
                frame.steps.append(one)
            result = one.value
            if frame is not None and result is not None and not (is_given and id(result) in frame.step_of):
                frame.step_of[id(result)] = one


def _steps_of(frame: Frame, values: list[Value]) -> tuple[Step, ...]:
    """Steps of a forward that compute values, or give them to it."""
    for value in values:
        if id(value) not in frame.step_of:
            frame.step_of[id(value)] = Step("", "outside", frame, (), [((), value)])
    return tuple(frame.step_of[id(value)] for value in values)


def _inside(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that transforms of torch.func have wrapped in this one, outermost first."""
    found = [tensor]
    while torch._C._functorch.is_functorch_wrapped_tensor(found[-1]):
        found.append(torch._C._functorch.get_unwrapped(found[-1]))
    return found[1:]


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor; 0 where it has none of the usual kind."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return 0


def _with_aliases(result: Any, given: list[torch.Tensor]) -> tuple[Any, Tensors]:
    """The result, and all tensors in it, with another tensor object in the place of every one that was an argument."""
    identities = {id(tensor) for tensor in given}

    def alias(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or id(leaf) not in identities:
            return leaf
        try:
            return leaf.view_as(leaf)
        except (RuntimeError, NotImplementedError):  # sparse, nested
            return leaf

    found = tensors_in(result)
    if identities.isdisjoint(id(tensor) for _, tensor in found):
        return result, found
    result = map_nested(alias, result)
    return result, tensors_in(result)


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
