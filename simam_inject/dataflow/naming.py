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
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from simam_inject.dataflow.example import Example
from simam_inject.dataflow.kinds import function_kind, function_name
from simam_inject.dataflow.twin import Convert, modules_with_python_forward, to_meta
from simam_inject.dataflow.values import Frame, Recording, Shape, keyed
from simam_inject.kinds import words
from simam_inject.nested import Key, map_nested, tensors_in

NOT_READS = words(
    """
    data_ptr device dim dtype element_size format get_device grad grad_fn has_names hash is_complex
    is_contiguous is_cpu is_cuda is_floating_point is_inference is_leaf is_meta is_mkldnn is_mps is_nested
    is_pinned is_quantized is_shared is_signed is_sparse is_xla itemsize layout len names nbytes ndim ndimension
    nelement numel output_nr register_hook repr requires_grad requires_grad_ retain_grad shape size storage
    storage_offset str stride sym_size type untyped_storage version
    """
)
"""Attributes and methods that do not look at a tensor's content."""
_IN_PLACE = re.compile(r"[^_]_$|^__(i\w+|setitem)__$")
_TELLS_META = frozenset({"is_meta", "data_ptr"})
Tensors = list[tuple[tuple[Key, ...], torch.Tensor]]


class Namer(TorchFunctionMode):
    """Runs forwards of one twin, and names each value of each module's forward.

    Args:
        model: a twin (see `twin`); its forwards may write to it.
        device: where tensors are made that a forward makes without saying where; None for the default.
    """

    def __init__(self, model: nn.Module, device: torch.device | None = None) -> None:
        super().__init__()
        self.model = model
        self.device = device
        modules = list(modules_with_python_forward(model))
        self.path_of = {id(module): path for path, module in modules}
        self.states = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        self.asks_for_values = False  # an operation failed, or it looked for data: it may go another way with values
        self._names_inside: dict[int, dict[int, str]] = {}
        self.with_own_hooks = {id(m) for _, m in modules if m._forward_hooks or m._forward_pre_hooks}
        self.active: Namer = self
        """What the hooks of this one call: another one of the same twin may run under them."""
        self.start()

    def start(self) -> None:
        """Forget the last forward."""
        self.frame: Frame | None = None
        self.calls: Counter[str] = Counter()
        self.first_calls: dict[str, Frame] = {}
        self.own_hooks: list[tuple[nn.Module, Frame | None]] = []
        """Modules whose own hooks run now, with their callers: pruning's, and the user's."""

    def run(self, example: Example, convert: Convert) -> None:
        """Run one forward on copies of the arguments; to be called inside `watching`."""
        self.start()
        args, kwargs = example.fresh(convert)
        with torch.inference_mode(False), torch.no_grad(), self:
            self.model(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Namer:
        """Itself: a forward that copies one of its modules copies the hooks on it."""
        return self

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every module of the twin: two next to its forward, and two around its own hooks."""
        handles = []
        for _, module in modules_with_python_forward(self.model):
            handles += [
                module.register_forward_pre_hook(self._on_call, with_kwargs=True),
                module.register_forward_hook(self._on_return, prepend=True, with_kwargs=True, always_call=True),
            ]
            if id(module) in self.with_own_hooks:
                handles += [
                    module.register_forward_pre_hook(lambda called, _: self.active.begin_own(called), prepend=True),
                    module.register_forward_hook(lambda called, *_: self.active.end_own(called), always_call=True),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_call(self, *call: Any) -> None:
        self.active.enter(*call)

    def _on_return(self, *call: Any) -> Any:
        return self.active.leave(*call)

    def begin_own(self, module: nn.Module) -> None:
        """Hooks of a module run from now on that are not these: pruning's, or the user's."""
        if id(module) in self.with_own_hooks:
            self.own_hooks.append((module, self.frame))

    def end_own(self, module: nn.Module) -> None:
        """They have run."""
        if self.own_hooks and self.own_hooks[-1][0] is module:
            self.own_hooks.pop()

    # What a subclass does with names

    def named(self, _path: str, result: Any) -> Any:
        """A value was computed: what the forward gets in its place."""
        return result

    def given(self, frame: Frame, name: str, path: str, tensors: Tensors) -> None:
        """A module was called with tensors in one of its parameters."""

    # Operations

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.device is not None and func in _device_constructors() and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": self.device}
        name = function_name(func)
        if self.frame is None or name in NOT_READS:
            self.asks_for_values |= name in _TELLS_META
            return func(*args, **kwargs)
        return self.operate(self.frame, func, args, kwargs)

    def operate(self, frame: Frame, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation of a forward."""
        result = self.compute(func, args, kwargs, [tensor for _, tensor in tensors_in((args, kwargs))])
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
        """What an operation returns: without data if one of its tensors has none, though constants have kept theirs."""
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
        """Before a module's forward, behind all of its own pre-hooks."""
        path = self.path_of.get(id(module))
        if path is None:  # a copy that the forward has made: its operations are those of its caller
            return
        self.end_own(module)
        with torch._C.DisableTorchFunction():
            parent = self.frame
            is_scope = parent is None or any(child is not None for child in module._modules.values())
            frame = self.frame = Frame(path, module, parent, is_scope)
            self.calls[path] += 1
            self.first_calls.setdefault(path, frame)
            self.entered(frame, args, kwargs)
            if is_scope:
                self._name_arguments(frame, args, kwargs)

    def entered(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module was called."""

    def _name_arguments(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = _parameters(type(frame.module).forward)
        children = frame.module._modules.keys()
        frame.taken = frozenset(children) | frozenset(names)
        extra = names[-1] if names else "args"
        named = [(names[place] if place < len(names) else extra, argument) for place, argument in enumerate(args)]
        for parameter, argument in [*named, *kwargs.items()]:
            name = parameter + "_input" * (parameter in children)
            tensors = [(keys, t) for keys, t in tensors_in(argument) if id(t) not in self.states]
            if tensors:
                self.given(frame, name, frame.next_path(name), tensors)

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
            output = self.left(frame, output)
            if frame.is_scope:
                return self.returned(frame, frame.path, output)
            if parent is not None and parent.is_scope:
                return self.returned(frame, parent.next_path(self.name_inside(parent, module)), output)
            return output

    def left(self, _frame: Frame, output: Any) -> Any:
        """A module's forward has returned: what its caller gets."""
        return output

    def returned(self, _frame: Frame, path: str, output: Any) -> Any:
        """The result of a module has a name."""
        return self.named(path, output)

    def name_inside(self, parent: Frame, module: nn.Module) -> str:
        """The module's path inside its caller; its full path where the caller does not hold it."""
        path = self.path_of[id(module)]
        own = [name for name, child in parent.module._modules.items() if child is module]
        if own and self.calls[path.rpartition(".")[0]]:  # shared with another caller, whose name for it the path is
            return own[0]
        if not parent.path or path.startswith(parent.path + "."):
            return path[len(parent.path) + 1 :] if parent.path else path
        names = self._names_inside.get(id(parent.module))
        if names is None:
            names = self._names_inside[id(parent.module)] = {id(m): name for name, m in parent.module.named_modules()}
        return names.get(id(module), path)


class Shapes(Namer):
    """Writes down the shapes of all named values, as first computed."""

    def start(self) -> None:
        """Forget the last forward."""
        super().start()
        self.shapes: dict[str, Shape] = {}

    def named(self, path: str, result: Any) -> Any:
        """Note the shapes of what was computed."""
        self._note(path, tensors_in(result))
        return result

    def given(self, _frame: Frame, _name: str, path: str, tensors: Tensors) -> None:
        """Note the shapes of what a module is given."""
        self._note(path, tensors)

    def goes_another_way(self, recording: Recording) -> bool:
        """Some module computed more or fewer values than in a recording: as if it had filled a cache there."""
        return any(self._names(path) != frame.names for path, frame in recording.first_calls.items())

    def _names(self, path: str) -> Counter[str]:
        return self.first_calls[path].names if path in self.first_calls else Counter()

    def _note(self, path: str, tensors: Tensors) -> None:
        for keys, tensor in tensors:
            self.shapes.setdefault(keyed(path, keys), tuple(tensor.shape))


@lru_cache(maxsize=1024)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Parameters of a forward, without `self`."""
    try:
        return tuple(inspect.signature(forward).parameters)[1:]
    except (TypeError, ValueError):
        return ("input",)


def _without_data(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an operation of which some are constants with data, and others have none."""
    written = kwargs.get("out", args[0] if _IN_PLACE.search(getattr(func, "__name__", "")) else None)
    if any(not tensor.is_meta for _, tensor in tensors_in(written)):
        raise RuntimeError("a constant is overwritten by what has no data here")
    new_args, new_kwargs = map_nested(_as_meta, (tuple(args), dict(kwargs)))
    return new_args, new_kwargs


def _as_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf
