"""Record one forward: which operation or module computes, returns and reads which tensor.

Tensors are identified by `id`: where an operation or a module returns one of its own inputs, the forward gets another
tensor object over the same memory. The result is one `torch.fx.Graph` for each module with children, of its first call:
its children as leaves, its operations as calls.
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
from simam_inject.dataflow.kinds import function_facts, function_kind, is_method, module_kind
from simam_inject.dataflow.naming import Namer, Tensors
from simam_inject.dataflow.twin import Convert, modules_with_python_forward
from simam_inject.dataflow.values import NEVER, NOWHERE, Entries, Frame, Layout, Read, Recording, Value, keyed
from simam_inject.nested import Key, is_named_tuple, map_nested, tensors_in


class Recorder(Namer):
    """Records a forward of one twin."""

    def start(self) -> None:
        """Forget the last forward."""
        super().start()
        self.recording = Recording(dict(modules_with_python_forward(self.model)), self.first_calls, self.calls)
        self.ticks = itertools.count()
        self.tick = 0
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Value]] = {}
        self._storages: list[StorageWeakRef] = []
        """As long as a weak reference is held, torch does not give the address to another storage."""

    def record(self, example: Example, convert: Convert) -> Recording:
        """Run one forward, and return what it does; to be called inside `watching`.

        Args:
            example: the arguments; the run gets copies.
            convert: makes the copies, on the twin's device.
        """
        self.run(example, convert)
        # What is alive now stands in a list or an attribute, for whoever reads it after the forward.
        alive = [value for tensor, value in self._known.values() if tensor() is not None and value.made != NEVER]
        self.recording.results += [value for value in alive if value not in self.recording.results]
        return self.recording

    # Values, by the identity of their tensors, as Python variables are distinguished from each other

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
        """Of any tensor; what was there before the forward is entered now."""
        value = self._find(tensor)
        return self._add(tensor, NOWHERE, NEVER) if value is None else value

    # Operations

    def operate(self, frame: Frame, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation of a forward, and enter what it reads, writes and computes."""
        tensors = [tensor for _, tensor in tensors_in((args, kwargs))]
        versions = [_version_of(tensor) for tensor in tensors]
        result = self.compute(func, args, kwargs, tensors)
        with torch._C.DisableTorchFunction():
            self.tick = next(self.ticks)
            inputs = [self._value(tensor) for tensor in tensors if id(tensor) not in self.states]
            for tensor, version in zip(tensors, versions, strict=True):
                if version is not None and tensor._version != version:
                    self.recording.writes.setdefault(_storage_of(tensor), []).append(self.tick)
            result, computed = _with_aliases(result, tensors)
            kind = function_kind(func)
            outputs = [
                (keys, self._add(tensor, layout_after(kind, func, args, kwargs, inputs, tensor), self.tick))
                for keys, tensor in computed
            ]
            path = ""
            if frame.is_scope and outputs:
                path = frame.next_path(self.name_operation(frame, func))
                self._enter_values(path, outputs, kind, tuple(inputs))
                self._write_operation(frame, func, kind, args, kwargs, outputs, path)
            for value in inputs:  # a leaf reads its arguments as a whole; anything else comes from elsewhere
                if frame.is_scope or (value.made < frame.start and value not in frame.inputs):
                    value.readings.append(Read(self.tick, path))
        return result

    def _enter_values(self, path: str, values: Entries, kind: str, inputs: tuple[Value, ...]) -> None:
        for keys, value in values:
            if value.path is None:
                value.path, value.kind, value.inputs = keyed(path, keys), kind, inputs
        self.recording.count(path, values)

    # Module calls

    def entered(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Enter what a module is given, and begin its graph."""
        self.tick = frame.start = next(self.ticks)
        inputs = []
        named: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
        for name, argument in named:
            for keys, tensor in tensors_in(argument):
                if id(tensor) not in self.states:
                    value = self._value(tensor)
                    value.arguments.append((frame, name, keys))
                    inputs.append(value)
        frame.inputs = tuple(inputs)
        frame.given = map_nested(lambda leaf: leaf, (args, kwargs))
        is_first = self.first_calls[frame.path] is frame
        if frame.is_scope and is_first and (frame.parent is None or frame.parent.graph is not None):
            frame.graph = self.recording.graphs[frame.path] = fx.Graph()

    def given(self, frame: Frame, name: str, path: str, tensors: Tensors) -> None:
        """Enter a parameter of a scope's forward."""
        values = [(keys, self._value(tensor)) for keys, tensor in tensors]
        for keys, value in values:
            self.recording.count(keyed(path, keys), [((), value)])
        if frame.graph is not None:
            self._enter_node(frame, frame.graph.placeholder(name), values, path, {"kind": "input"})

    def left(self, frame: Frame, output: Any) -> Any:
        """Enter what a module returns."""
        self.tick = frame.end = next(self.ticks)
        given = [tensor for _, tensor in tensors_in(frame.given)]
        sources = {id(tensor): self._find(tensor) for tensor in given}
        returned = [tensor for _, tensor in tensors_in(output)]
        output, tensors = _with_aliases(output, given)
        for (keys, tensor), before in zip(tensors, returned, strict=True):
            value = self._find(tensor)
            if value is None:
                source = sources.get(id(before))
                value = self._add(tensor, source.layout if source else NOWHERE, self.tick)
                if source is not None and frame.is_scope:
                    value.kind, value.inputs = "alias", (source,)
            value.returns.append((frame, keys))
            frame.outputs.append((keys, value))
        if frame.graph is not None:
            frame.graph.output(tuple(frame.nodes[id(value)] for _, value in frame.outputs if id(value) in frame.nodes))
        return output

    def returned(self, frame: Frame, path: str, output: Any) -> Any:
        """Enter the call of a module as a leaf of its caller's graph."""
        parent = frame.parent
        kind = "block" if frame.is_scope else module_kind(frame.module)
        if frame.is_scope:
            self.recording.count(path, frame.outputs)
        else:
            self._enter_values(path, frame.outputs, kind, frame.inputs)
            for value in frame.inputs:
                value.readings.append(Read(frame.start, path))
        if parent is None:
            self.recording.results = [value for _, value in frame.outputs]
        elif parent.graph is not None:
            args, kwargs = self._in_graph(parent, frame.given)
            node = parent.graph.call_module(self.name_inside(parent, frame.module), args, kwargs)
            meta = {"kind": kind, "frame": frame, "source": _source_position(parent.module)}
            self._enter_node(parent, node, frame.outputs, path, meta)
        frame.given = ((), {})
        return output

    # Graphs

    def _write_operation(
        self,
        frame: Frame,
        func: Callable[..., Any],
        kind: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Entries,
        path: str,
    ) -> None:
        if frame.graph is None:
            return
        target, op = (func.__name__, "call_method") if is_method(func) else (func, "call_function")
        node = frame.graph.create_node(op, target, *self._in_graph(frame, (args, kwargs)))
        facts = function_facts(kind, args, kwargs)
        self._enter_node(
            frame, node, outputs, path, {"kind": kind, "source": _source_position(frame.module), "facts": facts}
        )

    def _in_graph(self, frame: Frame, given: tuple[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with nodes in the place of tensors."""

        def node_of(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):  # a container of another class is read as a list
                return [node_of(tensor) for _, tensor in tensors_in(leaf)] or leaf
            return None if id(leaf) in self.states else self._node_of(frame, self._value(leaf))

        args, kwargs = map_nested(node_of, given)
        return tuple(args), dict(kwargs)

    def _node_of(self, frame: Frame, value: Value) -> fx.Node:
        """The node of a value in this scope; a new one for what is held in an attribute, a global or a closure."""
        node = frame.nodes.get(id(value))
        if node is None:
            assert frame.graph is not None
            node = frame.nodes[id(value)] = frame.graph.create_node("get_attr", "outside")
            node.meta["value"] = value
        return node

    def _enter_node(self, frame: Frame, node: fx.Node, values: Entries, path: str, meta: dict[str, Any]) -> None:
        """Describe a node, and write one more for each entry of a list, tuple or dict."""
        node.meta |= {"path": path, "scope": frame.path, "values": values, **meta}
        self.recording.nodes.setdefault(path, node)
        for keys, value in values:
            entry = node
            for key in keys:
                entry = node.graph.call_function(_get_entry, (entry, key))
            if keys:
                at = keyed(path, keys)
                entry.meta |= {"path": at, "scope": frame.path, "entry_of": node}
                self.recording.nodes.setdefault(at, entry)
            entry.meta["value"] = value
            if node.op != "placeholder" or id(value) not in frame.nodes:
                frame.nodes[id(value)] = entry


def _get_entry(container: Any, key: Key) -> Any:
    """An entry of a list, tuple or dict that a graph holds."""
    return getattr(container, key) if isinstance(key, str) and is_named_tuple(container) else container[key]


def _version_of(tensor: torch.Tensor) -> int | None:
    """How often the tensor's memory was written; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _storage_of(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor; 0 where it has none of the usual kind."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return 0


def _with_aliases(result: Any, given: list[torch.Tensor]) -> tuple[Any, Tensors]:
    """The result with another tensor object in the place of every tensor that was an argument; and its tensors."""
    identities = {id(tensor) for tensor in given}
    tensors = tensors_in(result)
    if not any(id(tensor) in identities for _, tensor in tensors):
        return result, tensors

    def alias(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or id(leaf) not in identities:
            return leaf
        try:
            return leaf.view_as(leaf)
        except (RuntimeError, NotImplementedError):  # sparse, nested
            return leaf

    aliased = map_nested(alias, result)
    return aliased, tensors_in(aliased)


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
