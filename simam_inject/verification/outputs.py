"""Outputs of a model, whatever their structure, compared tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch


def tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """All tensors of a nested output, in order."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from tensors_in(item)
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from tensors_in(item)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_in(getattr(output, field.name))


def difference(one: Any, other: Any) -> str | None:
    """How two outputs differ, in a few words; None if they are equal bit for bit (NaN equals NaN)."""
    ours, theirs = list(tensors_in(one)), list(tensors_in(other))
    if len(ours) != len(theirs):
        return f"{len(ours)} tensors instead of {len(theirs)}"
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index} is {tuple(a.shape)} {a.dtype} instead of {tuple(b.shape)} {b.dtype}"
        if not torch.equal(a, b) and not torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)):
            largest = (a.double() - b.double()).abs().nan_to_num().max().item()
            return f"output {index} differs by up to {largest:.3g}"
    return None


def all_finite(output: Any) -> bool:
    """No NaN and no infinity in any floating point output."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(output) if tensor.is_floating_point())
