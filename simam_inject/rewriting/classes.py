"""The class swap: the same module object, with a subclass of its own class whose forward has the attention in it.

So `isinstance`, attributes, methods, hooks, buffers, optimizer references and every `state_dict` key stay as they are.
The subclass keeps the name of the class it stands for, and pickles as data: the stock module, a specification and the
names of bound methods; loading swaps the class again (see `restoring`).
"""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from simam_inject.errors import InjectError
from simam_inject.rewriting.code import Source
from simam_inject.rewriting.containers import hiding_of
from simam_inject.rewriting.marks import SPECIFICATION, is_injected, specification_of, stock_class

__all__ = [
    "SPECIFICATION",
    "is_injected",
    "own_methods",
    "put",
    "refused_methods",
    "specification_of",
    "stock_class",
    "swapped_class",
]

_TABLES = ("_parameters", "_buffers", "_modules")
_NO_HOLDERS = (nn.Module, torch.Tensor, str, bytes, int, float, type(None), types.FunctionType, types.ModuleType)
"""What is not looked into for a way back to a module."""

_classes: dict[tuple[type[nn.Module], tuple[tuple[str, str, tuple[int, ...]], ...]], type[nn.Module]] = {}


def swapped_class(base: type[nn.Module], sources: tuple[Source, ...]) -> type[nn.Module]:
    """The subclass of `base` with these methods; one class for one (base, source text)."""
    key = (base, tuple((source.name, source.text, _held_objects(source)) for source in sources))
    if key in _classes:
        return _classes[key]
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_simam_stock_class": base,
        "_simam_refused": tuple(source.name for source in sources if source.is_refusal),
        "__reduce_ex__": _reduce,
        "__deepcopy__": _deepcopy,
        "__copy__": _copy,
    }
    namespace.update(hiding_of(base))
    for source in sources:
        function = source.compile()
        function.__module__, function.__qualname__ = base.__module__, f"{base.__qualname__}.{source.name}"
        function.__doc__ = getattr(getattr(base, source.name, None), "__doc__", None)
        namespace[source.name] = function
    swapped = _quiet_subclass(base, namespace)
    _classes[key] = swapped
    return swapped


def _quiet_subclass(base: type[nn.Module], namespace: dict[str, Any]) -> type[nn.Module]:
    """A subclass that `base.__init_subclass__` does not hear of: a library's registry must not hand it out."""
    is_told = hasattr(base.__init_subclass__, "__func__")
    bases = (nn.Module,) if is_told else (base,)
    swapped: type[nn.Module] = type(base)(base.__name__, bases, namespace)  # type: ignore[misc]
    if is_told:
        swapped.__bases__ = (base,)
    return swapped


def _held_objects(source: Source) -> tuple[int, ...]:
    """Objects that the text names and does not show, by identity; the class keeps them alive."""
    return tuple(
        id(item) for name, item in source.objects.items() if name.startswith(("_default_", "_fixed_", "_value_"))
    )


def refused_methods(module: nn.Module) -> tuple[str, ...]:
    """Methods of a rewritten module that cannot run with its SimAM in place, and say so when called."""
    names: tuple[str, ...] = getattr(type(module), "_simam_refused", ())
    return names


def put(module: nn.Module, swapped: type[nn.Module]) -> None:
    """Give the module another class, and let methods that the instance bound to itself follow."""
    methods = own_methods(module)
    object.__setattr__(module, "__class__", swapped)
    for name, method in methods.items():
        module.__dict__[name] = getattr(swapped, method).__get__(module)


def own_methods(module: nn.Module) -> dict[str, str]:
    """Instance attributes that are the module's own methods (`m.forward = m.forward_fuse`): attribute -> method."""
    found = {}
    for name, value in module.__dict__.items():
        if isinstance(value, types.MethodType) and value.__self__ is module:
            method = value.__func__.__name__
            if getattr(type(module), method, None) is value.__func__:  # not a function that somebody bound to it
                found[name] = method
    return found


def _reduce(self: nn.Module, _protocol: Any) -> tuple[Any, ...]:
    from simam_inject.rewriting.restoring import restore

    _check_picklable(self)
    methods = own_methods(self)
    stock = stock_class(self)
    plain = stock.__new__(stock)
    hidden = {SPECIFICATION, *methods}
    plain.__dict__.update({name: value for name, value in self.__dict__.items() if name not in hidden})
    if "forward" in methods:
        _check_switched(self, methods)
    return restore, (plain, specification_of(self).to_dict(), methods)


def _check_picklable(module: nn.Module) -> None:
    """Refuse to write a file that could not be read back.

    Raises:
        InjectError: the rewrite cannot be described as data, or the module would have to exist before its children.
    """
    name = type(module).__name__
    specification = specification_of(module)
    if specification.arguments is None and specification.fingerprints:
        raise InjectError(
            f"{name} cannot be pickled with SimAM in it: its forward takes an object of a class of its own, which is "
            "no data to trace it again from. Save the state_dict, and inject again after loading."
        )
    own = own_methods(module)
    for path, part in module.named_modules():
        for attribute, value in part.__dict__.items():
            is_own = part is module and attribute in own
            if not is_own and attribute not in _TABLES and _leads_to(module, value, set()):
                what = "a hook" if attribute.endswith("_hooks") else f"attribute {attribute}"
                raise InjectError(
                    f"{name} cannot be pickled with SimAM in it: {what} of {path or 'it'} leads back to the {name} "
                    "itself, which is there only when all it is made of is. Take that out, or save the state_dict and "
                    "inject again after loading."
                )


def _leads_to(module: nn.Module, value: Any, seen: set[int]) -> bool:
    """Is the module in a list or dict, bound to a method, or held by an object that is no module?"""
    if value is module:
        return True
    if id(value) in seen or isinstance(value, (*_NO_HOLDERS, type)):
        return False
    seen.add(id(value))
    if isinstance(value, Mapping):
        return any(_leads_to(module, item, seen) for item in (*value.keys(), *value.values()))
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return any(_leads_to(module, item, seen) for item in value)
    if isinstance(value, functools.partial):
        return any(_leads_to(module, item, seen) for item in (value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
        return _leads_to(module, value.__self__, seen)
    return _leads_to(module, getattr(value, "__dict__", {}), seen)


def _check_switched(module: nn.Module, methods: dict[str, str]) -> None:
    """Refuse a module that was folded after SimAM went in, where nobody could tell from it what the sites were.

    Raises:
        InjectError: the forward that runs now does not have them all.
    """
    from simam_inject.rewriting.recorded import prepare_again

    specification = specification_of(module)
    twin = stock_class(module).__new__(stock_class(module))
    twin.__dict__.update(module.__dict__)
    del twin.__dict__[SPECIFICATION]
    hidden = {edit.child for edit in specification.edits}
    twin.__dict__["_modules"] = {name: child for name, child in module._modules.items() if name not in hidden}
    for attribute, method in methods.items():
        twin.__dict__[attribute] = getattr(twin, method)
    try:
        prepare_again("it", twin, specification)
    except InjectError as error:
        raise InjectError(
            f"{type(module).__name__} cannot be pickled with SimAM in it: its forward was switched to "
            f"{methods['forward']}, and {error}. Save it before folding, or save the state_dict."
        ) from None


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    own = getattr(stock_class(self), "__deepcopy__", None)
    if own is not None:  # a parametrized module has one, and refuses to be reduced
        copied: nn.Module = own(self, memo)
        if type(copied) is not type(self):
            raise InjectError(
                f"{type(self).__name__} cannot be copied with SimAM in it: its own __deepcopy__ makes a plain "
                f"{type(copied).__name__}. Call simam_inject.eject(model), copy, and inject again."
            )
        return copied
    reduced: Any = stock_class(self).__reduce_ex__(self, 4)  # as the stock class would, __getstate__ included
    twin: nn.Module = reduced[0](*reduced[1])
    memo[id(self)] = twin
    twin.__setstate__(copy.deepcopy(reduced[2], memo))  # type: ignore[no-untyped-call]
    return twin


def _copy(self: nn.Module) -> nn.Module:
    twin = type(self).__new__(type(self))
    twin.__dict__.update(self.__dict__)
    return twin
