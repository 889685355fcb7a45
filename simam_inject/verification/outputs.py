"""Outputs of a model, whatever their structure, compared tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

_NOT_OUTPUTS = (type, nn.Module, ModuleType, FunctionType, MethodType, str, bytes, int, float, complex, type(None))
"""What an output may refer to and does not consist of."""


def tensors_of(output: Any) -> Iterator[torch.Tensor]:
    """All tensors of a nested output, in order; of an object of any class, those that its attributes hold."""
    return _walk(output, set())


def _walk(output: Any, above: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif not isinstance(output, _NOT_OUTPUTS) and id(output) not in above:  # an object may refer to itself
        for item in _items(output):
            yield from _walk(item, above | {id(output)})


def _items(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (list, tuple, AbstractSet)):
        return list(output)
    slots = [name for kind in type(output).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    names = [name for name in slots if name not in ("__dict__", "__weakref__") and hasattr(output, name)]
    held = [getattr(output, name) for name in names]
    return [*held, *getattr(output, "__dict__", {}).values()]


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def difference(one: Any, other: Any) -> str | None:
    """How two outputs differ, in a few words; None if their tensors are equal bit for bit (NaN equals NaN)."""
    ours, theirs = list(tensors_of(one)), list(tensors_of(other))
    if len(ours) != len(theirs):
        return f"{len(ours)} tensors instead of {len(theirs)}"
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index} is {tuple(a.shape)} {a.dtype} instead of {tuple(b.shape)} {b.dtype}"
        if a.layout != b.layout:
            return f"output {index} is {a.layout} instead of {b.layout}"
        found = _unequal(_dense(a), _dense(b))
        if found is not None:
            return f"output {index} {found}"
    return None


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _unequal(a: torch.Tensor, b: torch.Tensor) -> str | None:
    if torch.equal(a, b):
        return None
    nan = a.isnan()
    if not torch.equal(nan, b.isnan()):
        return "has NaN at other places"
    a, b = a.masked_fill(nan, 0), b.masked_fill(nan, 0)
    if torch.equal(a, b):
        return None
    wide = torch.complex128 if a.is_complex() else torch.float64
    return f"differs by up to {(a.to(wide) - b.to(wide)).abs().nan_to_num(posinf=torch.inf).max().item():.3g}"


def all_finite(output: Any) -> bool:
    """No NaN and no infinity in any floating point output."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(output) if tensor.is_floating_point())


def relative_distance(one: Any, other: Any) -> float | str:
    """Largest difference of two outputs relative to the largest value of `other`; a sentence if they do not compare."""
    ours, theirs = list(tensors_of(one)), list(tensors_of(other))
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return "the outputs have other shapes"
    distance = 0.0
    for found, wanted in zip(ours, theirs, strict=True):
        if not wanted.is_floating_point() or not wanted.numel():
            continue
        a, b = _dense(found.detach()).double(), _dense(wanted.detach()).double()
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()):
            return "has NaN or infinity at other places"
        zero = b.new_zeros(())
        scale = float(b.where(finite, zero).abs().max())
        difference_here = float((a - b).where(finite, zero).abs().max())
        distance = max(distance, difference_here / scale if scale else difference_here)
    return distance
