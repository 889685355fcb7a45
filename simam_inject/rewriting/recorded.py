"""Putting SimAM back where a file recorded it: every module's record is checked and worked out before any is touched.

Unpickling (`restoring`) does it to one module at a time, `persist.load` to the modules of a model that was built anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from simam_inject.errors import FileError, ModelError
from simam_inject.rewriting.classes import is_injected
from simam_inject.rewriting.records import Specification
from simam_inject.rewriting.surgeon import Operation, prepare
from simam_inject.tracing.inputs import Example
from simam_inject.tracing.recording import Call, record
from simam_inject.tracing.values import leaves, map_structure, rebuild

_MAX_BYTES = 4 << 30
"""A module that cannot run on meta tensors runs on real ones of the recorded sizes, and the file may be anybody's."""


def prepare_recorded(model: nn.Module, sites: Mapping[str, Specification]) -> tuple[Operation, ...]:
    """Work out how every module gets what was recorded of it. Nothing is changed.

    Args:
        model: without SimAM.
        sites: what each module held, by its path.

    Raises:
        FileError: a module is not there, cannot hold it, or computes something else than when it was recorded.
    """
    modules = dict(model.named_modules())
    absent = [path for path in sites if path not in modules]
    if absent:
        raise FileError(f"{type(model).__name__} has no module {absent[0]!r}, where a recorded SimAM belongs")
    return tuple(_prepare(path, modules[path], recorded) for path, recorded in sites.items())


def _prepare(path: str, module: nn.Module, recorded: Specification) -> Operation:
    told = f"{path or 'the model'} ({type(module).__name__})"
    _check_names(told, module, recorded)
    return prepare_again(told, module, recorded)


def prepare_again(told: str, module: nn.Module, recorded: Specification) -> Operation:
    """Work out how one module in its stock class gets what was recorded of it. Nothing is changed.

    Args:
        told: what an error calls the module.

    Raises:
        FileError: the module cannot hold it, or computes something else than when it was recorded.
    """
    try:
        operation = _prepare_call(module, recorded)
    except Exception as error:  # whatever somebody else's description makes the tracer say
        raise FileError(f"SimAM cannot be put back into {told}: {error}") from None
    found = dict(operation.specification.fingerprints)
    for method, mark in recorded.fingerprints:
        if method in found and found[method] != mark:
            raise FileError(
                f"{told}: {method} computes something else here than when the file was written; install the library "
                "in the version that it was written with, eject() there and save again"
            )
    return replace(operation, specification=recorded)


def _prepare_call(module: nn.Module, recorded: Specification) -> Operation:
    call = record_again(module, recorded) if recorded.fingerprints else None
    return prepare(module, call, recorded.edits)


def record_again(module: nn.Module, recorded: Specification) -> Call:
    """Run a module in its stock class as it was called when it was traced, in the dtype that it has now if need be.

    Raises:
        ModelError: it raises on these arguments.
    """
    *others, last = _examples_of(module, recorded)
    for example in others:
        try:
            return record(module, example)
        except ModelError:  # it was cast since
            continue
    return record(module, last)


def _examples_of(module: nn.Module, recorded: Specification) -> list[Example]:
    """The recorded arguments; then, if the module was cast since, the same in its present dtype."""
    args, kwargs = rebuild(recorded.arguments)
    tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    if size > _MAX_BYTES:
        raise ValueError(f"its recorded inputs take {size} bytes; at most {_MAX_BYTES} are allowed")
    examples = [Example(args, kwargs)]
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if dtype is not None and any(tensor.is_floating_point() and tensor.dtype != dtype for tensor in tensors):
        examples.append(Example(*map_structure(partial(_cast, dtype), (args, kwargs))))
    return examples


def _cast(dtype: torch.dtype, leaf: Any) -> Any:
    return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf


def _check_names(told: str, module: nn.Module, recorded: Specification) -> None:
    children = [edit.child for edit in recorded.edits]
    if is_injected(module) or any(hasattr(module, child) for child in children):
        raise FileError(f"{told} has an attribute {children[0]} already")
    if len(set(children)) < len(children) or sum(not edit.value for edit in recorded.edits) > 1:
        raise FileError(f"the file puts SimAM into {told} twice at one place")
