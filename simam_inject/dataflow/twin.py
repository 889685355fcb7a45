"""A twin of a model: the same modules with other tensors, so that a forward does not affect the original.

Whatever a forward writes to (buffers, lists, counters, caches on the module) is the twin's. On the meta device a twin
costs neither memory nor arithmetic.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.surroundings import SHARED

Convert = Callable[[torch.Tensor], torch.Tensor]
_ATOMS = (int, float, complex, bool, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType,
          types.ModuleType, torch.dtype, torch.device, torch.Size, range, slice)  # fmt: skip
_SHARED_LIBRARIES = frozenset({"lightning", "lightning_fabric", "pytorch_lightning", "logging", "threading"})
"""Objects of these refer to trainers, data sets and files, and are shared. So are sentinels (`object()`), which are
compared by identity, and objects with a `__del__`: the end of a copy would close what the original uses."""


_HOOK_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if "hook" in name and value is not None)


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's shape, dtype and strides without its data."""
    if type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided:
        detached = tensor.detach()
        return torch.empty_strided(detached.shape, detached.stride(), dtype=detached.dtype, device="meta")
    return tensor.detach().to("meta")


def to_clone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's content in memory of its own."""
    return tensor.detach().clone()


class _Copier:
    def __init__(self, convert: Convert) -> None:
        self.convert = convert
        self.twins: dict[int, Any] = {}
        self.alive: list[Any] = []
        """Originals, so that no `id` is used twice."""

    def model(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self.twins[id(module)] = object.__new__(type(module))
        for module in model.modules():
            if id(module) in self.twins:
                self._fill(module)
        twin: nn.Module = self.value(model)
        return twin

    def _fill(self, module: nn.Module) -> None:
        twin = self.twins[id(module)]
        for name, value in module.__dict__.items():
            if name in _HOOK_TABLES and not value:
                twin.__dict__[name] = type(value)()
            elif name != "_compiled_call_impl":  # code that was compiled for the original would run the original
                twin.__dict__[name] = self.value(value)
            else:
                twin.__dict__[name] = None
        for name in (slot for kind in type(module).__mro__ for slot in _names(vars(kind).get("__slots__", ()))):
            if name not in ("__dict__", "__weakref__") and hasattr(module, name):
                object.__setattr__(twin, name, self.value(getattr(module, name)))

    def value(self, value: Any) -> Any:
        if isinstance(value, _ATOMS) and not isinstance(value, torch.Tensor):
            return self._function(value) if isinstance(value, types.FunctionType) else value
        if id(value) not in self.twins:
            twin = self._copy(value)
            self.twins[id(value)] = twin
            self.alive.append(value)
        return self.twins[id(value)]

    def _copy(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if kind in (list, set, deque, dict, OrderedDict, defaultdict):
            return self._container(value)
        if kind is tuple:
            return tuple(self.value(item) for item in value)
        if kind is types.MethodType:
            return types.MethodType(value.__func__, self.value(value.__self__))
        if kind is partial:
            keywords = {name: self.value(item) for name, item in value.keywords.items()}
            return partial(value.func, *map(self.value, value.args), **keywords)
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):  # held outside the tables
            self.twins[id(value)] = object.__new__(kind)
            self.alive.append(value)
            self._fill(value)
            return self.twins[id(value)]
        if kind is weakref.ref:
            twin = self.twins.get(id(value()))
            return value if twin is None else weakref.ref(twin)
        is_shared = kind.__module__.partition(".")[0] in _SHARED_LIBRARIES or id(value) in SHARED.get()
        if is_shared or kind is object or hasattr(kind, "__del__"):
            return value
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if _is_plain(type(value)):
            return self._attributes(value)
        try:
            return copy.deepcopy(value, self.twins)
        except Exception:  # it holds a lock, a generator, an open file: these are shared, and the rest is not
            return self._attributes(value)

    def _attributes(self, value: Any) -> Any:
        try:
            twin = object.__new__(type(value)) if hasattr(value, "__dict__") else value
        except TypeError:
            return value
        self.twins[id(value)] = twin  # before its attributes: they may refer to it
        if twin is not value:
            twin.__dict__.update((name, self.value(item)) for name, item in value.__dict__.items())
        return twin

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """The function over the twins of what it closes over; itself where that cannot belong to the model."""
        if id(function) in self.twins or not _closes_over_state(function, set()):
            return self.twins.get(id(function), function)  # type: ignore[no-any-return]
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        twin.__dict__.update(function.__dict__)
        self.twins[id(function)] = twin  # before its cells: it may close over itself
        self.alive.append(function)
        twin.__defaults__, twin.__kwdefaults__ = self.value(function.__defaults__), self.value(function.__kwdefaults__)
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self.value(original.cell_contents)
            except ValueError:  # not filled yet
                continue
        return twin

    def _container(self, value: Any) -> Any:
        if isinstance(value, defaultdict):
            twin: Any = defaultdict(value.default_factory)
        else:
            twin = deque(maxlen=value.maxlen) if isinstance(value, deque) else type(value)()
        self.twins[id(value)] = twin  # before its items: it may hold itself
        self.alive.append(value)
        if isinstance(value, dict):
            twin.update((self.value(key), self.value(item)) for key, item in value.items())
        elif isinstance(value, set):
            twin.update(self.value(item) for item in value)
        else:
            twin.extend(self.value(item) for item in value)
        return twin

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            twin = self.convert(tensor)
        if isinstance(tensor, nn.Parameter) and type(twin) is torch.Tensor:
            wants = tensor.requires_grad and not twin.is_inference() and (twin.is_floating_point() or twin.is_complex())
            twin = nn.Parameter(twin, requires_grad=wants)
        if isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter:  # one with methods of its own
            twin = torch.Tensor._make_subclass(type(tensor), twin.detach(), twin.requires_grad)
        if tensor.__dict__:
            self.twins[id(tensor)] = twin  # before its attributes: they may refer to it
            twin.__dict__.update((name, self.value(item)) for name, item in tensor.__dict__.items())
        return twin


def _closes_over_state(function: types.FunctionType, seen: set[int]) -> bool:
    """What it closes over, or has as a default, could belong to the model, or could be written to by a forward."""
    seen.add(id(function))
    contents = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    for held in contents:
        content = held.__self__ if isinstance(held, types.MethodType) else held
        if isinstance(content, (nn.Module, torch.Tensor, list, dict, set, deque)):
            return True
        if isinstance(content, types.FunctionType) and id(content) not in seen and _closes_over_state(content, seen):
            return True
    return False


def _is_plain(kind: type) -> bool:
    """Objects of the class consist of their attributes, and are copied as any object is."""
    copies = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
    is_usual = all(getattr(kind, name, None) is getattr(object, name, None) for name in copies)
    has_slots = any("__slots__" in vars(base) for base in kind.__mro__)
    return is_usual and not has_slots and getattr(kind, "__new__", None) is getattr(object, "__new__", None)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def copier(convert: Convert) -> Callable[[Any], Any]:
    """A function that copies whatever is given, as a twin is made; what it meets twice is one thing in the copies."""
    return _Copier(convert).value


def twin_of(model: nn.Module, convert: Convert) -> nn.Module:
    """Return the same network over other tensors: modules, hooks and containers are copies, in the same modes.

    Args:
        model: left as it is.
        convert: `to_meta`, `to_clone`, or any function that makes the twin of a tensor. A tensor that stands at two
            places in the model has one twin.
    """
    with torch.inference_mode(False):
        return _Copier(convert).model(model)


def modules_with_python_forward(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with its first dotted path; scripted modules take no hooks and are left out."""
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield path, module


def set_mode(model: nn.Module, training: bool) -> None:
    """All modules in train or eval mode. `train()` is not called: some models override it."""
    for _, module in modules_with_python_forward(model):
        module.training = training
