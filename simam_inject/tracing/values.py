"""Values as the tracer knows them: meta tensors (shape, dtype, strides, no data) inside Python structures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch


class Unknown:
    """The value of something the example forward never computed. A singleton: `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()

PLAIN_TYPES = (bool, int, float, str, type(None))
"""Types whose values a graph can hold as literals and a guard can compare."""


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's shape, dtype and strides without its data."""
    if type(tensor) is torch.Tensor and tensor.is_meta:
        return tensor
    detached = tensor.detach()
    return torch.empty_strided(detached.shape, detached.stride(), dtype=detached.dtype, device="meta")


def is_named_tuple(value: object) -> bool:
    """True for instances of `typing.NamedTuple` and `collections.namedtuple` classes."""
    return isinstance(value, tuple) and hasattr(type(value), "_fields")


def map_structure(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply `function` to the leaves of nested lists, tuples and dicts, rebuilding the containers.

    Other classes (dataclasses, `ModelOutput`, ...) are leaves, and so are torch's structseqs.
    """
    kind = type(value)
    if kind in (list, tuple):
        return kind(map_structure(function, item) for item in value)
    if kind in (dict, OrderedDict):
        return kind((key, map_structure(function, item)) for key, item in value.items())
    if is_named_tuple(value):
        return kind(*(map_structure(function, item) for item in value))
    return function(value)


def leaves(value: Any) -> list[Any]:
    """The leaves of `map_structure`, in order."""
    found: list[Any] = []
    map_structure(found.append, value)
    return found


def forget_data(value: Any) -> Any:
    """The same structure with every tensor replaced by its meta twin."""

    def forget(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        try:
            return to_meta(leaf)
        except (RuntimeError, NotImplementedError):  # sparse, quantized: no strided meta twin
            return UNKNOWN

    return map_structure(forget, value)


def same_structure(one: Any, other: Any) -> bool:
    """Same containers, same ranks and dtypes of tensors, equal plain values: two calls that one graph can serve."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and one.dim() == other.dim()
            and one.dtype == other.dtype
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same_structure(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same_structure(one[key], other[key]) for key in one)
    return not isinstance(one, PLAIN_TYPES) or one == other


def describe(value: Any) -> Any:
    """JSON description of a structure of meta tensors and plain values, enough for `rebuild`.

    Raises:
        TypeError: something in it is neither.
    """
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return {"tensor": [list(value.shape), list(value.stride()), str(value.dtype).removeprefix("torch.")]}
    if kind in PLAIN_TYPES:
        return {"plain": value}
    if kind in (list, tuple, torch.Size):
        return {"list" if kind is list else "tuple": [describe(item) for item in value]}
    if kind in (dict, OrderedDict) and all(isinstance(key, (str, int)) for key in value):
        return {"dict": [[key, describe(item)] for key, item in value.items()]}
    raise TypeError(f"a {kind.__name__} cannot be described as data")


def rebuild(description: Any) -> Any:
    """Inverse of `describe`. Reads data only; anything unexpected is a ValueError."""
    if not isinstance(description, dict) or len(description) != 1:
        raise ValueError(f"not a value description: {description!r:.80}")
    ((kind, content),) = description.items()
    if kind == "plain" and isinstance(content, PLAIN_TYPES):
        return content
    if kind == "tensor":
        shape, stride, name = content
        dtype = getattr(torch, name, None)
        integers = all(isinstance(length, int) and length >= 0 for length in [*shape, *stride])
        if not isinstance(dtype, torch.dtype) or not integers or len(shape) > 8:
            raise ValueError(f"not a tensor description: {content!r:.80}")
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    if kind == "list":
        return [rebuild(item) for item in content]
    if kind == "tuple":
        return tuple(rebuild(item) for item in content)
    if kind == "dict":
        return {key: rebuild(item) for key, item in content}
    raise ValueError(f"not a value description: {description!r:.80}")
