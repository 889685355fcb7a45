"""Names and shapes of a model's and of a file's tensors, and what differs between the two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from simam_inject.errors import FileError

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, without its data."""

    shape: tuple[int, ...]
    is_floating: bool
    dtype: str


Table = Mapping[str, Entry]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel and `torch.compile`, whose prefixes have no place in a file."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None) if type(model).__name__ == "OptimizedModule" else None
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """The `state_dict` as plain tensors, in its order.

    Raises:
        FileError: it holds something that is no tensor, or that has no numbers here.
    """
    state = {}
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise FileError(f"{name} is a {type(value).__name__}: a safetensors file stores tensors only")
        if value.is_meta:
            raise FileError(f"{name} is on the meta device and has no data")
        if type(value) not in (torch.Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
            kind = type(value).__name__ if value.layout is torch.strided else str(value.layout)
            raise FileError(
                f"{name} is not a plain tensor ({kind}): gather, dequantise or densify it first; for sharded models "
                "see torch.distributed.checkpoint"
            )
        state[name] = value
    return state


def table_of(state: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    """Names, shapes and dtypes of a state."""
    return {
        name: Entry(tuple(t.shape), t.is_floating_point() or t.is_complex(), str(t.dtype).removeprefix("torch."))
        for name, t in state.items()
    }


def layout_of(table: Table) -> str:
    """SHA-256 over the sorted names and shapes. The dtype is left out: weights may be stored in half precision."""
    lines = (f"{name} {'x'.join(map(str, entry.shape))}" for name, entry in sorted(table.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Difference:
    """How a file's table differs from a model's."""

    missing: tuple[str, ...]
    """In the model only."""
    unexpected: tuple[str, ...]
    """In the file only."""
    shapes: tuple[str, ...]
    """One sentence for each tensor whose shape or kind differs."""

    def __str__(self) -> str:
        parts = (
            ("in the model, not in the file", self.missing),
            ("in the file, not in the model", self.unexpected),
            ("of another shape", self.shapes),
        )
        return "\n".join(f"  {len(found)} {words}: {_shortened(found)}" for words, found in parts if found)


def difference(file: Table, model: Table) -> Difference:
    """Compare two tables."""
    shapes = []
    for name in (name for name in model if name in file):
        ours, theirs = model[name], file[name]
        if ours.shape != theirs.shape:
            shapes.append(f"{name} (file {_size(theirs)}, model {_size(ours)})")
        elif ours.is_floating != theirs.is_floating:
            shapes.append(f"{name} (file {theirs.dtype}, model {ours.dtype})")
    missing = tuple(name for name in model if name not in file)
    return Difference(missing, tuple(name for name in file if name not in model), tuple(shapes))


def _shortened(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _size(entry: Entry) -> str:
    return "x".join(map(str, entry.shape)) or "scalar"
