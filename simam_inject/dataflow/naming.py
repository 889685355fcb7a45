"""Name what a forward computes while it runs: `layer1.0.conv2`, `layer1.0.add[2]`, `fpn:0`.

A `TorchFunctionMode` (which belongs to one thread) sees every operation, and temporary hooks on a twin of the model see
every module call. Nothing is traced: the forward runs as Python.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn
from torch.overrides import TorchFunctionMode

from simam_inject.dataflow.example import Example
from simam_inject.dataflow.module_kinds import function_kind, function_name
from simam_inject.dataflow.twin import Convert, to_meta
from simam_inject.dataflow.values import Frame, Shape, keyed
from simam_inject.kinds import words
from simam_inject.modules import called_modules, has_children
from simam_inject.nested import Key, map_nested, tensors_in

NOT_READS = words(
    """
    data_ptr device dim dtype element_size format get_device grad grad_fn has_names hash is_complex
    is_contiguous is_cpu is_cuda is_floating_point is_inference is_leaf is_meta is_mkldnn is_mps is_nested
    is_pinned is_quantized is_shared is_signed is_sparse is_xla itemsize layout len names nbytes ndim ndimension
    nelement numel output_nr register_hook repr requires_grad requires_grad_ retain_grad shape size storage
    storage_offset str stride sym_size untyped_storage version
    """
)
"""Attributes and methods that do not look at a tensor's content."""
_IN_PLACE = re.compile(r"[^_]_$|^__(i\w+|setitem)__$")
_SHOWS_META = frozenset({"is_meta", "data_ptr", "type"})
"""What tells a forward that its tensors have no data."""
Tensors = list[tuple[tuple[Key, ...], torch.Tensor]]
Arguments = list[tuple[Key, str | None, Tensors]]
"""Of a call: position or keyword of each argument, its path if it has one, and the tensors inside it, parameters and
buffers of the model excepted."""


class Namer(TorchFunctionMode):
    """Names each value that the modules of a twin compute in one forward, and notes its shape.

    Args:
        model: a twin (see `twin`); its forwards may write to it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.modules = {
            path: module for path, module in called_modules(model) if not isinstance(module, torch.jit.ScriptModule)
        }
        self.path_of = {id(module): path for path, module in self.modules.items()}
        tables = (table for module in model.modules() for table in (module._parameters, module._buffers))
        self.states = {id(tensor) for table in tables for tensor in table.values()}
        self.asks_for_values = False
        """An operation failed, or the forward asked whether there is data: with data it may do something else."""
        self._names_inside: dict[int, dict[int, str]] = {}
        self.with_own_hooks = {id(m) for m in self.modules.values() if m._forward_hooks or m._forward_pre_hooks}
        self.frame: Frame | None = None
        self.calls: Counter[str] = Counter()
        self.first_calls: dict[str, Frame] = {}
        self.shapes: dict[str, Shape] = {}
        """Of every tensor that has a path, as first computed."""
        self.own_hooks: list[tuple[nn.Module, Frame | None]] = []
        """Modules whose own hooks run now, with their callers: pruning's, and the user's."""

    def run(self, example: Example, convert: Convert) -> Self:
        """Run one forward on copies of the arguments, which `convert` makes."""
        args, kwargs = example.fresh(convert)
        with torch.inference_mode(False), torch.no_grad(), self.watching():
            self.model(*args, **kwargs)
        return self

    def names_in(self, path: str) -> dict[str, int]:
        """How many values of each name the first call of a module computed."""
        return self.first_calls[path].names if path in self.first_calls else {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Namer:
        """Returns this object: a forward that copies one of its modules copies the hooks on it too."""
        return self

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, forwards of the twin are named: by two hooks on every module, next to its forward.

        Two more surround the hooks that a module has already.
        """
        handles = []
        for module in self.modules.values():
            handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self.leave, prepend=True, with_kwargs=True, always_call=True))
            if id(module) in self.with_own_hooks:
                handles.append(module.register_forward_pre_hook(self.begin_own, prepend=True))
                handles.append(module.register_forward_hook(self.end_own, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def begin_own(self, module: nn.Module, *_call: Any) -> None:
        """From now on other hooks of a module run: pruning's, or the user's."""
        if id(module) in self.with_own_hooks:
            self.own_hooks.append((module, self.frame))

    def end_own(self, module: nn.Module, *_call: Any) -> None:
        """They have run."""
        if self.own_hooks and self.own_hooks[-1][0] is module:
            self.own_hooks.pop()

    # What a subclass does with names

    def named(self, path: str, result: Any) -> Any:
        """A value was computed: what the forward gets in its place."""
        self._note(path, tensors_in(result))
        return result

    def entered(self, _frame: Frame, arguments: Arguments) -> None:
        """A module was called."""
        for _, path, tensors in arguments:
            if path is not None:
                self._note(path, tensors)

    def left(self, _frame: Frame, path: str | None, output: Any) -> Any:
        """A module's forward has returned: what its caller gets. Without a path, rules cannot name it."""
        return output if path is None else self.named(path, output)

    def _note(self, path: str, tensors: Tensors) -> None:
        for keys, tensor in tensors:
            self.shapes.setdefault(keyed(path, keys), tuple(tensor.shape))

    # Operations

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        is_query = name in NOT_READS or (name == "type" and len(args) + len(kwargs) == 1)
        if self.frame is None or is_query:
            self.asks_for_values |= name in _SHOWS_META
            return func(*args, **kwargs)
        return self.operate(self.frame, func, args, kwargs)

    def operate(self, frame: Frame, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation of a forward."""
        result = self.compute(func, args, kwargs, arguments_in(args, kwargs))
        if frame.is_scope and tensors_in(result):
            with torch._C.DisableTorchFunction():
                return self.named(frame.next_path(self.name_operation(frame, func)), result)
        return result

    def name_operation(self, frame: Frame, func: Callable[..., Any]) -> str:
        """Name of an operation in the forward that runs it."""
        name = function_kind(func)
        if self.own_hooks and self.own_hooks[-1][1] is frame:
            name += "_hook"
        while name in frame.taken:
            name += "_op"
        return name

    def compute(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]
    ) -> Any:
        """What an operation returns: without data if one of its tensors has none, even if others are constants."""
        try:
            if len({tensor.is_meta for tensor in tensors}) > 1:
                args, kwargs = _without_data(func, args, kwargs)
            elif tensors and tensors[0].is_meta and func is F.batch_norm and not self.model.training:
                return to_meta(tensors[0])  # as torch does it on meta, but at once
            return func(*args, **kwargs)
        except Exception:
            self.asks_for_values = True
            raise

    # Module calls

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module's forward, after all of its own pre-hooks."""
        path = self.path_of.get(id(module))
        if path is None:  # a copy that the forward has made: its operations are those of its caller
            return
        self.end_own(module)
        with torch._C.DisableTorchFunction():
            parent = self.frame
            frame = self.frame = Frame(path, module, parent, parent is None or has_children(module))
            if frame.is_scope:
                frame.taken = frozenset([*module._modules, *parameters_of(type(module).forward)])
            self.calls[path] += 1
            self.first_calls.setdefault(path, frame)
            arguments: Arguments = []
            call: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
            for key, argument in call:
                given = tensors_in(argument)
                frame.given += [tensor for _, tensor in given]
                tensors = [(keys, tensor) for keys, tensor in given if id(tensor) not in self.states]
                arguments.append((key, _name_argument(frame, key) if tensors and frame.is_scope else None, tensors))
            self.entered(frame, arguments)

    def leave(self, module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], output: Any) -> Any:
        """After a module's forward, before any of its own hooks."""
        with torch._C.DisableTorchFunction():
            frame = self.frame
            while frame is not None and frame.module is not module:  # an exception skipped its hook
                frame = frame.parent
            if frame is None:
                return output
            parent = self.frame = frame.parent
            self.begin_own(module)
            path = frame.path if frame.is_scope else None
            if not frame.is_scope and parent is not None and parent.is_scope:
                name = self._name_inside(parent, module)
                path = frame.path if name is None else parent.next_path(name)
            output = self.left(frame, path, output)
            frame.given.clear()
            return output

    def _name_inside(self, parent: Frame, module: nn.Module) -> str | None:
        """The module's path inside its caller; None where it is not a part of its caller."""
        path = self.path_of[id(module)]
        above, _, name = path.rpartition(".")
        if above == parent.path and parent.module._modules.get(name) is module:
            return name
        own = [name for name, child in parent.module._modules.items() if child is module]
        if own and self.calls[above]:  # shared with another caller, whose name for it the path is
            return own[0]
        if not parent.path or path.startswith(parent.path + "."):
            return path.removeprefix(parent.path).removeprefix(".")
        names = self._names_inside.get(id(parent.module))
        if names is None:
            names = self._names_inside[id(parent.module)] = {id(m): name for name, m in parent.module.named_modules()}
        return names.get(id(module))


def _name_argument(frame: Frame, key: Key) -> str:
    """Path of an argument of a call, by its position or keyword."""
    names = parameters_of(type(frame.module).forward) or ("args",)
    name = key if isinstance(key, str) else names[min(key, len(names) - 1)]
    return frame.next_path(name + "_input" * (name in frame.module._modules))


def arguments_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """All tensors among the arguments of a call."""
    return [tensor for _, tensor in tensors_in([*args, *kwargs.values()])]


@lru_cache(maxsize=1024)
def parameters_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Parameters of a forward, without `self`."""
    try:
        return tuple(inspect.signature(forward).parameters)[1:]
    except (TypeError, ValueError):
        return ("input",)


def _without_data(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an operation on constants with data and on tensors without: all of them without."""
    written = kwargs.get("out", args[0] if _IN_PLACE.search(getattr(func, "__name__", "")) else None)
    if any(not tensor.is_meta for _, tensor in tensors_in(written)):
        raise RuntimeError("a constant is overwritten by a tensor without data")
    new_args, new_kwargs = map_nested(_as_meta, (tuple(args), dict(kwargs)))
    return new_args, new_kwargs


def _as_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf
