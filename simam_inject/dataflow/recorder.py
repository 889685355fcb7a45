"""Record one forward: which operation or module computes, returns and reads which tensor.

A `TorchFunctionMode` (which belongs to one thread) sees every operation, and temporary hooks on a twin of the model see
every module call. Tensors are identified by `id`: where an operation or a module returns one of its own inputs, the
forward gets another tensor object over the same memory. The result is one `torch.fx.Graph` for each module with
children, of its first call. Nothing is traced: the forward runs as Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from simam_inject.dataflow.axes import NOWHERE, layout_after
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.graphs import add_input, add_node, known_node
from simam_inject.dataflow.kinds import function_facts, function_kind, module_kind
from simam_inject.dataflow.naming import Names
from simam_inject.dataflow.own_hooks import OwnHooks
from simam_inject.dataflow.table import ValueTable
from simam_inject.dataflow.tensors import NOT_READS, is_method, source_position, storage_of, version_of, with_aliases
from simam_inject.dataflow.twin import modules_with_python_forward
from simam_inject.dataflow.values import Frame, Read, Recording, Value, join, keyed
from simam_inject.nested import Key, map_nested, tensors_in


class Recorder(TorchFunctionMode):
    """Records forwards of one twin.

    Args:
        model: a twin (see `twin`); its forwards may write to it.
        device: where tensors are made that a forward makes without saying where; None for the default.
    """

    def __init__(self, model: nn.Module, device: torch.device | None = None) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.path_of = {id(module): path for path, module in modules_with_python_forward(model)}
        self.states = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        self.names = Names(self.path_of)
        self.hooks = OwnHooks(lambda: self.frame)
        self.asks_for_values = False  # an operation failed, or it looked for data: it may go another way with values
        self._start(with_graphs=True)

    def _start(self, *, with_graphs: bool) -> None:
        self.with_graphs = with_graphs
        self.recording = Recording(modules=dict(modules_with_python_forward(self.model)))
        self.frame: Frame | None = None
        self.ticks = itertools.count()
        self.tick = 0
        self.values = ValueTable(self.recording)

    def record(
        self, example: Example, convert: Callable[[torch.Tensor], torch.Tensor], *, with_graphs: bool = True
    ) -> Recording:
        """Run one forward and write down what it does; to be called inside `watching`.

        Args:
            example: the arguments; the run gets copies.
            convert: makes the copies, on the twin's device.
            with_graphs: write the graphs too; otherwise shapes and counts only.
        """
        self._start(with_graphs=with_graphs)
        args, kwargs = example.fresh(convert)
        with torch.inference_mode(False), torch.no_grad(), self:
            result = self.model(*args, **kwargs)
        del args, kwargs, result
        # What is alive now stands in a list or an attribute, for whoever reads it after the forward.
        self.recording.results += [value for value in self.values.alive() if value not in self.recording.results]
        return self.recording

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        """Itself: a forward that copies one of its modules copies the hooks on it."""
        return self

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every module of the twin."""
        with ExitStack() as stack:
            for _, module in modules_with_python_forward(self.model):
                for handle in self.hooks.around(module, self.enter, self.leave):
                    stack.callback(handle.remove)
            yield

    # Operations

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.device is not None and func in _device_constructors() and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": self.device}
        name: str = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name.strip("_") in NOT_READS or self.frame is None:
            self.asks_for_values |= name in ("is_meta", "data_ptr")
            return func(*args, **kwargs)
        tensors = [tensor for _, tensor in tensors_in([args, kwargs])]
        versions = [version_of(tensor) for tensor in tensors]
        try:
            is_slow = name == "batch_norm" and args[0].is_meta and not self.model.training  # as torch does it on meta
            result = torch.empty_like(args[0]) if is_slow else func(*args, **kwargs)
        except Exception:
            self.asks_for_values = True
            raise
        with torch._C.DisableTorchFunction():
            return self._operation(func, args, kwargs, tensors, versions, result)

    def _operation(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
        versions: list[int | None],
        result: Any,
    ) -> Any:
        frame = self.frame
        assert frame is not None
        self.tick = tick = next(self.ticks)
        kind = function_kind(func)
        inputs = [self.values.outside(tensor) for tensor in tensors if id(tensor) not in self.states]
        for tensor, version in zip(tensors, versions, strict=True):
            if version is not None and tensor._version != version:
                self.recording.writes.setdefault(storage_of(tensor), []).append(tick)
        if isinstance(result, torch.Tensor):
            outputs: list[tuple[tuple[Key, ...], torch.Tensor]] = [((), result)]
        else:
            outputs = list(tensors_in(result))
        if any(any(tensor is given for given in tensors) for _, tensor in outputs):
            result = with_aliases(result, tensors)
            outputs = list(tensors_in(result))
        values = []
        for keys, tensor in outputs:
            layout = layout_after(kind, func, args, kwargs, inputs, tensor)
            values.append((keys, self.values.add(tensor, layout, tick)))
        if frame.is_scope:
            path = self._name_operation(frame, kind, func, args, kwargs, values, inputs) if values else ""
            for value in inputs:
                value.reads.append(Read(tick, path))
        else:  # inside a leaf, which reads its arguments as a whole; anything else comes from elsewhere
            for value in inputs:
                if value.made < frame.start and value not in frame.inputs:
                    value.reads.append(Read(tick, ""))
        return result

    def _name_operation(
        self,
        frame: Frame,
        kind: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: list[tuple[tuple[Key, ...], Value]],
        inputs: list[Value],
    ) -> str:
        name = f"{kind}_hook" if self.hooks.run_for(frame) else kind
        while name in frame.taken:
            name += "_op"
        path = join(frame.path, self._count(frame, name))
        self._enter_values(path, values, kind, tuple(inputs))
        if frame.graph is not None:
            target, op = (func, "call_function") if not is_method(func) else (func.__name__, "call_method")
            node = self._node(frame, op, target, (args, kwargs), values, path)
            node.meta |= {
                "kind": kind,
                "source": source_position(frame.module),
                "facts": function_facts(kind, args, kwargs),
            }
        return path

    def _count(self, frame: Frame, name: str) -> str:
        frame.names[name] += 1
        return name if frame.names[name] == 1 else f"{name}[{frame.names[name]}]"

    def _enter_values(
        self, path: str, values: list[tuple[tuple[Key, ...], Value]], kind: str, inputs: tuple[Value, ...]
    ) -> None:
        for keys, value in values:
            at = keyed(path, keys)
            if value.path is None:
                value.path, value.kind, value.inputs = at, kind, inputs
            self.recording.count(at, value)
        if not (len(values) == 1 and values[0][0] == ()):
            self.recording.count(path)

    def _node(
        self,
        frame: Frame,
        op: str,
        target: Any,
        given: tuple[Any, Any],
        values: list[tuple[tuple[Key, ...], Value]],
        path: str,
    ) -> fx.Node:
        def node_of(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return None if id(leaf) in self.states else known_node(frame, self.values.outside(leaf))

        args, kwargs = (map_nested(node_of, part) for part in given)
        return add_node(self.recording, frame, op, target, tuple(args), dict(kwargs), values, path)

    # Module calls

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module's forward, behind all of its own pre-hooks."""
        path = self.path_of.get(id(module))
        if path is None:  # a copy that the forward has made: its operations are those of its caller
            return
        self.hooks.end(module)
        with torch._C.DisableTorchFunction():
            self.tick = next(self.ticks)
            parent = self.frame
            is_scope = parent is None or any(child is not None for child in module._modules.values())
            frame = self.frame = Frame(path, module, parent, self.tick, is_scope)
            given: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
            inputs = []
            for name, argument in given:
                for keys, tensor in tensors_in(argument):
                    if id(tensor) in self.states:
                        continue
                    value = self.values.outside(tensor)
                    value.arguments.append((frame, name, keys))
                    inputs.append(value)
            frame.inputs = tuple(inputs)
            frame.given = map_nested(lambda leaf: leaf, (args, kwargs))
            is_first = not self.recording.calls[path]
            self.recording.calls[path] += 1
            if is_first:
                self.recording.first_calls[path] = frame
            if not is_scope:
                return
            names = self.names.parameters(type(module))
            children = frozenset(module._modules)
            frame.taken = children | frozenset(names)
            if self.with_graphs and is_first and (parent is None or parent.graph is not None):
                frame.graph = fx.Graph()
                self.recording.graphs[path] = frame
            self._enter_arguments(frame, names, children, args, kwargs)

    def _enter_arguments(
        self,
        frame: Frame,
        names: tuple[str, ...],
        children: frozenset[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        extra = names[-1] if names else "args"
        named = [(names[place] if place < len(names) else extra, argument) for place, argument in enumerate(args)]
        for parameter, argument in [*named, *kwargs.items()]:
            name = parameter + "_input" * (parameter in children)
            values = [(keys, self.values.outside(t)) for keys, t in tensors_in(argument) if id(t) not in self.states]
            if not values:
                continue
            path = join(frame.path, self._count(frame, name))
            for keys, value in values:
                self.recording.count(keyed(path, keys), value)
            if frame.graph is not None:
                add_input(self.recording, frame, name, path, values)

    def leave(self, module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], output: Any) -> Any:
        """After a module's forward, before any of its own hooks."""
        with torch._C.DisableTorchFunction():
            frame = self.frame
            while frame is not None and frame.module is not module:  # an exception skipped its hook
                frame = frame.parent
            if frame is None:
                return output
            self.tick = frame.end = next(self.ticks)
            parent = self.frame = frame.parent
            self.hooks.start(module)
            arguments, frame.given = frame.given, ((), {})
            given = [tensor for _, tensor in tensors_in(arguments)]
            returned = [tensor for _, tensor in tensors_in(output)]
            if any(tensor is one for tensor in returned for one in given):
                output = with_aliases(output, given)
            sources = {id(tensor): self.values.find(tensor) for tensor in given}
            for (keys, tensor), before in zip(tensors_in(output), returned, strict=True):
                value = self.values.find(tensor)
                if value is None:
                    source = sources.get(id(before))
                    value = self.values.add(tensor, source.layout if source else NOWHERE, self.tick)
                    if source is not None and frame.is_scope:
                        value.kind, value.inputs = "alias", (source,)
                value.returns.append((frame, keys))
                frame.outputs.append((keys, value))
            if frame.graph is not None:
                frame.graph.output(
                    tuple(frame.nodes[id(value)] for _, value in frame.outputs if id(value) in frame.nodes)
                )
            if parent is None:
                self.recording.results = [value for _, value in frame.outputs]
                self._finish_block(frame)
            else:
                self._enter_call(parent, frame, arguments)
            return output

    def _enter_call(self, parent: Frame, frame: Frame, arguments: tuple[Any, Any]) -> None:
        """The call as a leaf of its caller's graph."""
        name = self.names.inside(parent, frame.module)
        if frame.is_scope:
            path = frame.path
            self._finish_block(frame)
        else:
            if not parent.is_scope:
                return
            path = join(parent.path, self._count(parent, name))
            self._enter_values(path, frame.outputs, module_kind(frame.module), frame.inputs)
            for value in frame.inputs:
                value.reads.append(Read(frame.start, path))
        frame.name = path
        if parent.graph is not None:
            node = self._node(parent, "call_module", name, arguments, frame.outputs, path)
            kind = "block" if frame.is_scope else module_kind(frame.module)
            node.meta |= {"kind": kind, "frame": frame, "source": source_position(parent.module)}

    def _finish_block(self, frame: Frame) -> None:
        for keys, value in frame.outputs:
            if keys:
                self.recording.count(keyed(frame.path, keys), value)
        whole = next((value for keys, value in frame.outputs if not keys), None)
        self.recording.count(frame.path, whole)
