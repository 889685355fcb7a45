"""Leave no trace: modes, attributes, buffers, random states as they were, whatever a forward does in between."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from simam_inject.tracing.watching import same_items

_TABLES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (list, dict, set, deque)


def _copy_attribute(value: Any) -> Any:
    """One level of copy for the containers that a forward may append to, and hooks that remove themselves."""
    return copy.copy(value) if isinstance(value, _CONTAINERS) else value


def _put_back(attribute: Any, saved: Any) -> Any:
    """Refill the original container, so that others who hold it see the old content too."""
    if isinstance(attribute, _CONTAINERS) and not same_items(attribute, saved):
        attribute.clear()
        (attribute.extend if isinstance(attribute, (list, deque)) else attribute.update)(saved)
    return attribute


def _python_modules(model: nn.Module) -> Iterator[nn.Module]:
    """All but scripted ones, whose tables are views into compiled code."""
    return (module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes, tables and modes afterwards. Contents of tensors are not saved."""
    saved = [
        (module, dict(module.__dict__), {name: _copy_attribute(value) for name, value in module.__dict__.items()})
        for module in _python_modules(model)
    ]
    try:
        yield
    finally:
        for module, attributes, contents in saved:
            module.__dict__.clear()
            for name, value in attributes.items():
                module.__dict__[name] = _put_back(value, contents[name])


@contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Twins in place of all buffers (BatchNorm statistics, counters, observers) inside, the very tensors afterwards.

    Nothing is written to the model's own buffers, since a graph that waits for its backward may have saved them. Only
    one that somebody else holds too, and changes by another name than its own, gets its content back.
    """
    originals = {id(buffer): buffer for buffer in model.buffers() if not buffer.is_meta}
    saved = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in originals.values()]
    tables = [(module._buffers, dict(module._buffers)) for module in _python_modules(model)]
    twins = _twins(list(originals.values()))
    try:
        for table, buffers in tables:
            table.update({name: twins.get(id(buffer), buffer) for name, buffer in buffers.items()})
        yield
    finally:
        for table, buffers in tables:
            table.clear()
            table.update(buffers)
        for buffer, version, content in saved:
            if version is None or _version(buffer) != version:
                _write_back(buffer, content)


def _version(tensor: torch.Tensor) -> int | None:
    """Counts the writes to a tensor and its views; None for an inference tensor, which counts none."""
    return None if tensor.is_inference() else tensor._version


def _twins(tensors: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """A copy of each tensor, by `id`. Those that look into one storage do so again."""
    sharing: dict[int, list[torch.Tensor]] = {}
    twins = {}
    for tensor in tensors:
        if type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.numel():
            sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        twins[id(tensor)] = tensor.detach().clone()
    for group in sharing.values():
        if len(group) > 1:
            storage = group[0].untyped_storage().clone()  # type: ignore[no-untyped-call]
            for tensor in group:
                place = tensor.storage_offset(), tensor.size(), tensor.stride()
                twins[id(tensor)] = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, *place)
    return twins


def _write_back(buffer: torch.Tensor, content: torch.Tensor) -> None:
    with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
        if buffer.shape != content.shape:  # a quantization observer grows its own
            buffer.resize_(content.shape)
        buffer.copy_(content)


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the random states of torch (all devices in use), numpy and Python afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules in train or eval mode inside, as it was afterwards. `train()` is not called: some override it."""
    saved = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in saved:
            module.training = training
        yield
    finally:
        for module, was_training in saved:
            module.training = was_training


@contextmanager
def on_meta(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers replaced by meta twins inside, so that a forward costs no arithmetic and no memory.

    Raises:
        TypeError: a part of the model is scripted.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError("the tensors of a scripted module live in compiled code and cannot be replaced for a moment")
    twins: dict[int, torch.Tensor] = {}
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for module in model.modules():
            for table_name in _TABLES[:2]:
                table = module.__dict__[table_name]
                saved.append((table, dict(table)))
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    twin = twins.get(id(tensor))
                    if twin is None:
                        twin = torch.empty_like(tensor, device="meta")
                        if isinstance(tensor, nn.Parameter):
                            twin = nn.Parameter(twin, requires_grad=False)
                        twins[id(tensor)] = twin
                    table[name] = twin
        yield
    finally:
        for table, contents in saved:
            table.clear()
            table.update(contents)
