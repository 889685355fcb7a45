"""Putting SimAM back where a file recorded it: every module's record is checked and worked out before any is touched.

What unpickling does for one module (`restoring`) is done here for the modules of a model that was built anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from simam_inject.errors import FileError, InjectError
from simam_inject.rewriting.classes import is_injected
from simam_inject.rewriting.records import Specification
from simam_inject.rewriting.surgeon import Operation, prepare
from simam_inject.tracing.inputs import Example
from simam_inject.tracing.recording import record
from simam_inject.tracing.values import leaves, rebuild

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
    call = None
    try:
        if any(edit.value for edit in recorded.edits):
            call = record(module, _example_of(recorded))
        operation = prepare(module, call, recorded.edits)
    # The arguments are somebody else's: sizes that overflow, nesting without end, a call that the module refuses.
    except (InjectError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"SimAM cannot be put back into {told}: {error}") from None
    found = dict(operation.specification.fingerprints)
    for method, mark in recorded.fingerprints:
        if method in found and found[method] != mark:
            raise FileError(f"{told}: {method} computes something else here than when the file was written")
    return replace(operation, specification=recorded)


def _example_of(recorded: Specification) -> Example:
    args, kwargs = rebuild(recorded.arguments)
    size = sum(leaf.untyped_storage().nbytes() for leaf in leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
    if size > _MAX_BYTES:
        raise ValueError(f"its recorded inputs take {size} bytes; at most {_MAX_BYTES} are allowed")
    return Example(args, kwargs)


def _check_names(told: str, module: nn.Module, recorded: Specification) -> None:
    children = [edit.child for edit in recorded.edits]
    if is_injected(module) or any(hasattr(module, child) for child in children):
        raise FileError(f"{told} has an attribute {children[0]} already")
    if len(set(children)) < len(children) or sum(not edit.value for edit in recorded.edits) > 1:
        raise FileError(f"the file puts SimAM into {told} twice at one place")
