"""The values of a recording by the identity of their tensors, as Python variables are told from each other."""

from __future__ import annotations

import weakref

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from simam_inject.dataflow.axes import NOWHERE
from simam_inject.dataflow.tensors import storage_of
from simam_inject.dataflow.values import NEVER, Layout, Recording, Value


class ValueTable:
    """Finds the `Value` of a tensor; holds neither tensors nor storages alive."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.known: dict[int, tuple[weakref.ref[torch.Tensor], Value]] = {}
        self.storages: list[StorageWeakRef] = []
        """As long as a weak reference is held, torch does not give the address to another storage."""

    def find(self, tensor: torch.Tensor) -> Value | None:
        """The value of a tensor that the forward has seen; None for anything else."""
        entry = self.known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def add(self, tensor: torch.Tensor, layout: Layout, tick: int) -> Value:
        """Enter a tensor that the forward has just made."""
        storage = storage_of(tensor)
        if storage and storage not in self.recording.by_storage:
            self.storages.append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
        value = Value(tuple(tensor.shape), tensor.dtype, storage, layout, tick)
        self.known[id(tensor)] = weakref.ref(tensor), value
        if storage:
            self.recording.by_storage.setdefault(storage, []).append(value)
        return value

    def outside(self, tensor: torch.Tensor) -> Value:
        """A tensor that was there before: an input, a parameter, a buffer, a cached table."""
        value = self.find(tensor)
        return self.add(tensor, NOWHERE, NEVER) if value is None else value

    def alive(self) -> list[Value]:
        """What the forward made and somebody still holds: it stands in a list or an attribute."""
        return [value for tensor, value in self.known.values() if tensor() is not None and value.made != NEVER]
