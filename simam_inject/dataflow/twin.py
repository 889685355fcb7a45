"""A twin of a model: the same modules with other tensors, so that a forward does not affect the original.

Whatever a forward writes to (buffers, lists, counters, caches on the module) is the twin's. On the meta device a twin
costs neither memory nor arithmetic.

A twin is what a pickle of the model's attributes gives back: `pickle` walks any structure, cycles included. Modules and
tensors go through it by reference to their twins, and what is not to be copied (classes, code, locks, files) as it is.
"""

from __future__ import annotations

import gc
import io
import pickle
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import _lru_cache_wrapper, lru_cache
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.surroundings import SHARED

Convert = Callable[[torch.Tensor], torch.Tensor]
_FEW = 16
_CONTENT = frozenset(
    [int, float, complex, bool, str, bytes, types.NoneType, list, dict, tuple, set, OrderedDict, defaultdict, deque]
)
"""Classes whose instances are copied together with their contents."""
_ATOMS: tuple[type, ...] = (type, types.BuiltinFunctionType, types.ModuleType, types.CodeType)
_ATOMS += (torch.dtype, torch.device, torch.Size, torch.UntypedStorage)
_SHARED_LIBRARIES = frozenset({"lightning", "lightning_fabric", "pytorch_lightning", "logging", "threading"})
"""Objects of these refer to trainers, data sets and files, and are shared. So are sentinels (`object()`), which are
compared by identity, and objects with a `__del__`: deleting a copy would close what the original uses. One that refers
to a module is copied nevertheless, without its `__del__`: what it runs has to be the twin's."""
_COMPILED = "_torchdynamo_orig_callable"
"""Attribute of a function that `torch.compile` has made: the original, which runs in the twin."""
_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_NUMBERS = frozenset([int, float, bool, str, types.NoneType])
_DICTS: tuple[dict[str, Any], ...] = {}, OrderedDict()
_VIEWS = tuple(type(view) for each in _DICTS for view in (each.keys(), each.values(), each.items()))


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's shape, dtype and strides without its data."""
    if type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided:
        detached = tensor.detach()
        return torch.empty_strided(detached.shape, detached.stride(), dtype=detached.dtype, device="meta")
    return tensor.detach().to("meta")


def to_sketch(tensor: torch.Tensor) -> torch.Tensor:
    """As `to_meta`, but constants of a few numbers keep them: strides and scales, which a forward may look at."""
    is_constant = type(tensor) is torch.Tensor and tensor.numel() <= _FEW and not tensor.is_meta
    return tensor.detach().to("cpu", copy=True) if is_constant else to_meta(tensor)


def to_clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor with its content."""
    return tensor.detach().clone()


class _Copier(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, convert: Convert, shared: type | tuple[()]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self.convert = convert
        self.shared = shared
        self.passed: list[Any] = []
        """What goes through the pickle by reference, by number."""
        self.get = self.passed.__getitem__
        self.twins: dict[int, Any] = {}
        self.waiting: deque[tuple[Any, tuple[dict[str, Any], dict[str, Any]]]] = deque()
        """Twins of modules and tensors whose attributes and slots are still to be copied."""
        self.alive: list[Any] = []
        """Originals, so that no `id` is used twice."""

    def persistent_id(self, value: Any) -> int | None:
        """The number of what goes through by reference; None for what is copied."""
        kind = type(value)
        if kind in _CONTENT or kind in weakref.ProxyTypes:  # a proxy says that it is an instance of its target's class
            return None
        if id(value) not in self.twins:
            if isinstance(value, torch.Tensor):
                self._enter(value, self._tensor(value), value.__dict__, {})
            elif kind is object or value is self.get or _is_atom(value) or self._is_shared(value):
                return self._pass_on(value)
            elif isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
                self.module(value)
            else:
                return None
        return self._pass_on(self.twins[id(value)])

    def _pass_on(self, value: Any) -> int:
        self.passed.append(value)
        return len(self.passed) - 1

    def _is_shared(self, value: Any) -> bool:
        kind = type(value)
        if isinstance(value, types.FunctionType):
            return _COMPILED not in value.__dict__ and not _closes_over_state(value)
        return (
            (hasattr(kind, "__del__") and not _refers_to_modules(value))
            or isinstance(value, self.shared)
            or (id(value) in SHARED.get() and not isinstance(value, weakref.ref))
        )

    def reducer_override(self, value: Any) -> Any:
        """How to make the copy of an object that is not a plain container."""
        if type(value) is types.FunctionType:
            value = value.__dict__.get(_COMPILED, value)
        if (parts := self._reference(value)) is not None:
            return parts
        if isinstance(value, types.FunctionType):
            cells = tuple(types.CellType() for _ in value.__closure__ or ())
            twin = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
            return *self._by_reference(twin), contents_of(value), None, None, _fill_function
        if isinstance(value, types.MethodType):
            return types.MethodType, (value.__func__, value.__self__)
        if hasattr(type(value), "__del__"):
            kind = type(value)
            quiet = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__del__": lambda _: None})
            return object.__new__, (quiet,), vars(value)
        try:
            parts = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        except Exception:  # a lock, a generator, an open file
            parts = ""
        return self._by_reference(value) if isinstance(parts, str) else parts

    def _reference(self, value: Any) -> Any:
        """How to make a weak reference, dict view or lru_cache that refers to the twin; None for anything else."""
        is_proxy = type(value) in weakref.ProxyTypes
        if is_proxy or isinstance(value, weakref.ref):
            target, make = _target(value), weakref.proxy if is_proxy else weakref.ref
            if isinstance(target, types.MethodType) and not is_proxy:
                return weakref.WeakMethod, (target,)
            return (make, (target,)) if id(target) in self.twins else self._by_reference(value)
        if isinstance(value, types.MappingProxyType):
            return types.MappingProxyType, (gc.get_referents(value)[0],)
        if isinstance(value, _VIEWS):
            return getattr(gc.get_referents(value)[0], type(value).__name__.partition("_")[2]), ()
        if isinstance(value, _lru_cache_wrapper) and _refers_to_modules(value):
            return _new_cache, (tuple(value.cache_parameters().values()), value.__wrapped__)
        return None

    def _by_reference(self, value: Any) -> tuple[Callable[[int], Any], tuple[int]]:
        """How to make the very same object."""
        return self.get, (self._pass_on(value),)

    def module(self, module: nn.Module) -> None:
        """Make the twin of a module, still empty."""
        twin, state = object.__new__(type(module)), dict[str, Any]()
        for name, value in vars(module).items():
            if name in _TABLES and not value:
                twin.__dict__[name] = type(value)()
            elif name != "_compiled_call_impl":  # code that was compiled for the original would run the original
                twin.__dict__[name] = value
                if type(value) not in _NUMBERS:
                    state[name] = value
        attributes_and_slots = object.__getstate__(module)
        slots = attributes_and_slots[1] if isinstance(attributes_and_slots, tuple) else {}
        self._enter(module, twin, state, slots)

    def _enter(self, original: Any, twin: Any, attributes: dict[str, Any], slots: dict[str, Any]) -> None:
        self.twins[id(original)] = twin
        self.alive.append(original)
        if attributes or slots:
            self.waiting.append((twin, (attributes, slots)))

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        twin = self.convert(tensor)
        if isinstance(tensor, nn.Parameter) and type(twin) is torch.Tensor:
            wants = tensor.requires_grad and not twin.is_inference() and (twin.is_floating_point() or twin.is_complex())
            twin = nn.Parameter(twin, requires_grad=wants)
        if isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter:  # one with methods
            twin = torch.Tensor._make_subclass(type(tensor), twin.detach(), twin.requires_grad)
        return twin


class _Loader(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, passed: list[Any]) -> None:
        super().__init__(buffer)
        self.passed = passed

    def persistent_load(self, number: int) -> Any:
        return self.passed[number]


def reachable(value: Any) -> Iterator[Any]:
    """Everything that a value refers to, and itself: attributes, entries, closures, and targets of weak references.

    What is in modules is left out, as are globals.
    """
    waiting, seen = [value], dict[int, Any]()
    while waiting:
        value = waiting.pop()
        if type(value) in weakref.ProxyTypes:
            value = _target(value)
        if id(value) in seen or _is_atom(value):
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, types.FunctionType):
            defaults, keywords, cells, attributes = contents_of(value)
            waiting += [*(defaults or ()), *(keywords or {}).values(), *cells.values(), *attributes.values()]
        elif isinstance(value, weakref.ref):
            waiting.append(_target(value))
        elif type(value) is dict:  # in Python 3.13, the collector does not see what is in the `__dict__` of an object
            waiting += [*value, *value.values()]
        elif not isinstance(value, (nn.Module, torch.Tensor)):
            waiting += gc.get_referents(value)


def _target(reference: Any) -> Any:
    """What a weak reference or a proxy refers to; None if that is gone."""
    try:
        return reference.__dir__.__self__ if type(reference) in weakref.ProxyTypes else reference()
    except ReferenceError:
        return None


def _is_atom(value: Any) -> bool:
    """What has no twin, nor has anything that it refers to."""
    is_function = isinstance(value, types.BuiltinFunctionType)
    is_method = is_function and not isinstance(value.__self__, (types.ModuleType, types.NoneType, type))
    return (isinstance(value, _ATOMS) and not is_method) or _is_of_library(value)


def _is_of_library(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] in _SHARED_LIBRARIES


def _refers_to_modules(value: Any) -> bool:
    return any(isinstance(each, nn.Module) for each in reachable(value))


def _closes_over_state(function: types.FunctionType) -> bool:
    """What it closes over, or has as a default, could belong to the model, or could be written to by a forward."""
    for value in reachable(function):
        if isinstance(value, (nn.Module, torch.Tensor)):
            return True
        if isinstance(value, types.FunctionType):
            defaults, keywords, cells, _ = contents_of(value)
            contents = (*(defaults or ()), *(keywords or {}).values(), *cells.values())
            if any(issubclass(type(content), (list, dict, set, deque)) for content in contents):
                return True
    return False


def contents_of(function: types.FunctionType) -> tuple[Any, Any, dict[int, Any], dict[str, Any]]:
    """Defaults, keyword defaults, contents of cells that are filled, and attributes."""
    cells = {}
    for index, cell in enumerate(function.__closure__ or ()):
        with suppress(ValueError):  # not filled yet
            cells[index] = cell.cell_contents
    return function.__defaults__, function.__kwdefaults__, cells, function.__dict__


def _new_cache(parameters: tuple[Any, ...], function: Any) -> Any:
    return lru_cache(*parameters)(function)


def _fill_function(twin: types.FunctionType, contents: tuple[Any, Any, dict[int, Any], dict[str, Any]]) -> None:
    twin.__defaults__, twin.__kwdefaults__, cells, attributes = contents
    twin.__dict__.update(attributes)
    for index, content in cells.items():
        (twin.__closure__ or ())[index].cell_contents = content


def copied_with(convert: Convert, value: Any, *, shared: type | tuple[()] = ()) -> Any:
    """A copy of any structure; what is in it twice is one thing in the copy.

    Args:
        convert: makes the copy of a tensor: `to_meta`, `to_sketch`, `to_clone`, or any other function.
        value: left as it is.
        shared: objects of this class are not copied.
    """
    buffer = io.BytesIO()
    copier = _Copier(buffer, convert, shared)
    if isinstance(value, nn.Module):
        for _, module in modules_with_python_forward(value):  # all at once: a weak reference may come first
            copier.module(module)
    with torch.inference_mode(False), torch.no_grad():
        copier.dump(value)
        filled = []
        while copier.waiting:
            twin, contents = copier.waiting.popleft()
            filled.append(twin)
            copier.dump(contents)
        buffer.seek(0)
        loader = _Loader(buffer, copier.passed)
        copy = loader.load()
        for twin in filled:
            attributes, slots = loader.load()
            twin.__dict__.update(attributes)
            for name, content in slots.items():
                object.__setattr__(twin, name, content)
    return copy


def twin_of(model: nn.Module, convert: Convert) -> nn.Module:
    """Return the same network over other tensors: modules, hooks and containers are copies, in the same modes.

    Parts that are compiled run their own forward.

    Args:
        model: left as it is.
        convert: see `copied_with`. A tensor that is at two places in the model has one twin.
    """
    twin: nn.Module = copied_with(convert, model)
    for _, module in modules_with_python_forward(twin):
        if type(module).__name__ == "OptimizedModule":
            module.__dict__["forward"] = module.get_submodule("_orig_mod").__call__
        elif (forward := getattr(type(module).forward, _COMPILED, None)) is not None and "forward" not in vars(module):
            module.__dict__["forward"] = types.MethodType(forward, module)
    return twin


def modules_with_python_forward(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with its first dotted path; scripted modules take no hooks and are left out."""
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield path, module


def set_mode(model: nn.Module, training: bool) -> None:
    """All modules in train or eval mode. `train()` is not called: some models override it."""
    for _, module in modules_with_python_forward(model):
        if module.training is not training:
            module.training = training
