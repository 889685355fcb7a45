"""Tensors inside nested lists, tuples and dicts."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from simam_inject.errors import ModelError, a_type

Key = int | str
"""An entry of a list, tuple or dict."""
_KEYS = (str, int, float, Enum, type(None))
"""What is the same text in each forward, unlike the `str` of other objects."""

_ATOMS = frozenset([bool, int, str, float, type(None), torch.Size, torch.dtype, torch.device])
_NOT_OUTPUTS = (type, nn.Module, ModuleType, FunctionType, MethodType, str, bytes, int, float, complex, type(None))
"""Types that are not searched for tensors."""
_CONTAINERS = (Mapping, list, tuple, deque, AbstractSet, ValuesView)


def version_of(tensor: Tensor) -> int | None:
    """How often PyTorch has written to the tensor's memory; None where it does not count."""
    return None if tensor.is_inference() else tensor._version


def is_named_tuple(value: object) -> bool:
    """True for instances of `typing.NamedTuple` and `collections.namedtuple` classes."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def entries_of(value: Any) -> list[tuple[Key, Any]] | None:
    """Keys and entries of a container of tensors; None for anything else.

    A named tuple and a dataclass have the names of their fields as keys, other lists and tuples positions. Keys of a
    dict that are neither `str` nor `int` are written as `str`: `("p", 3)`, an enum, None, a float.
    """
    if is_named_tuple(value):
        return list(zip(type(value)._fields, value, strict=True))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return [(_written(key), entry) for key, entry in value.items() if _is_key(key)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return None


def _is_key(key: Any) -> bool:
    return all(map(_is_key, key)) if isinstance(key, tuple) else isinstance(key, _KEYS)


def _written(key: Any) -> Key:
    return key if isinstance(key, (str, int)) else str(key)


def tensors_in(value: Any, keys: tuple[Key, ...] = (), depth: int = 0) -> list[tuple[tuple[Key, ...], torch.Tensor]]:
    """Every tensor of a nested structure with the keys that lead to it; a bare tensor has none."""
    if isinstance(value, torch.Tensor):
        return [(keys, value)]
    found: list[tuple[tuple[Key, ...], torch.Tensor]] = []
    kind = type(value)
    if depth < 6 and kind not in _ATOMS:
        for key, entry in enumerate(value) if kind is list or kind is tuple else entries_of(value) or ():
            if type(entry) not in _ATOMS:
                found += tensors_in(entry, (*keys, key), depth + 1)
    return found


def tensors_of(output: Any) -> Iterator[Tensor]:
    """All tensors of a nested output, in order; of an object of any class, those that its attributes hold.

    Tensors and containers count as often as they are in it. An object counts once: objects may refer to each other.
    """
    return _walk(output, {})


def _walk(output: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif not isinstance(output, _NOT_OUTPUTS) and id(output) not in seen:
        seen[id(output)] = output
        is_container = isinstance(output, _CONTAINERS)
        if isinstance(output, Mapping):
            items = list(output.values())
        else:  # attributes, in a dict or in slots
            items = list(output) if is_container else [object.__getstate__(output)]
        for item in items:
            yield from _walk(item, seen)
        if is_container:
            del seen[id(output)]


def map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply `function` to the leaves of nested lists, tuples and dicts, and rebuild the containers.

    A dataclass that contains tensors is copied; objects of other classes are leaves.
    """
    kind = type(value)
    if kind in (list, tuple):
        return kind(map_nested(function, item) for item in value)
    if kind in (dict, OrderedDict):
        return kind((key, map_nested(function, item)) for key, item in value.items())
    if is_named_tuple(value):
        return kind(*(map_nested(function, item) for item in value))
    if is_dataclass(kind) and not isinstance(value, Mapping) and tensors_in(value):
        for field in fields(value):
            value = replace_entry(value, field.name, map_nested(function, getattr(value, field.name, None)))
        return value
    return function(value)


def replace_entry(value: Any, key: Key, entry: Any) -> Any:
    """A copy of the container with another entry at `key`: of the same class, with the same attributes.

    Raises:
        KeyError: the container has no such entry.
    """
    if is_named_tuple(value):
        return _replace_field(value, key if isinstance(key, str) else type(value)._fields[key], entry)
    if isinstance(value, tuple) and isinstance(key, int):
        made = type(value)([*value[:key], entry, *value[key + 1 :]])
        if hasattr(value, "__dict__"):
            made.__dict__.update(value.__dict__)
            _replace_attributes(made, value, key, entry)
        return made
    if isinstance(value, (list, Mapping)):
        place = _place_of(value, key)
        try:
            kind: Any = type(value)
            is_plain = kind in (list, dict)  # without attributes; `torch.compile` cannot trace the copy of one
            twin: Any = kind(value) if is_plain else copy.copy(value)
            twin[place] = entry
        except Exception as error:
            raise ModelError(f"{a_type(value)} cannot be copied with another entry: {error}") from error
        if not is_plain:
            _replace_attributes(twin, value, place, entry)
        return twin
    if is_dataclass(value) and not isinstance(value, type) and isinstance(key, str):
        twin = copy.copy(value)
        object.__setattr__(twin, key, entry)
        return twin
    if isinstance(value, fx.Proxy):  # of a list or tuple: how many entries it has is not known
        raise ModelError("torch.fx cannot trace a model with SimAM on one map of a list: trace it first, then inject")
    raise KeyError(key)


def write_entry(value: Any, key: Key, entry: Any) -> Any:
    """Write an entry into a plain list or dict, so that all that refer to it see it; other containers are copied."""
    if type(value) not in (list, dict, OrderedDict):
        return replace_entry(value, key, entry)
    value[_place_of(value, key)] = entry
    return value


def _place_of(value: Any, key: Key) -> Any:
    """The index or key of an entry in a list or mapping, whose keys may be no text."""
    if not isinstance(value, Mapping) or key in value:
        return key
    return next((own for own in value if _is_key(own) and _written(own) == key), key)


def _replace_field(value: Any, name: str, entry: Any) -> Any:
    """A named tuple with another entry."""
    if torch.compiler.is_dynamo_compiling():  # with torch 2.11, `_replace` returns an empty one then
        return type(value)(**dict(zip(type(value)._fields, value, strict=True)) | {name: entry})
    return value._replace(**{name: entry})


def _replace_attributes(twin: Any, value: Any, key: Any, entry: Any) -> None:
    """Replace the entry in attributes of the container too, as in dicts whose keys are attributes."""
    if getattr(value, "__dict__", None) is value:
        twin.__dict__ = twin
        return
    old, attributes = value[key], getattr(twin, "__dict__", {})
    for name, content in list(attributes.items()):
        if any(tensor is old for _, tensor in tensors_in(content)):
            attributes[name] = map_nested(lambda leaf: entry if leaf is old else leaf, content)


def entry_at(value: Any, key: Key) -> Any:
    """The entry of a container at `key`.

    Raises:
        KeyError: it is not a container, or has no such entry.
    """
    if isinstance(value, fx.Proxy):
        entry: Any = value
        return entry[key]
    for found, entry in entries_of(value) or ():
        if found == key:
            return entry
    raise KeyError(key)
