"""Unpickling: a stock module and a specification become an injected module again, or the load fails and says why.

No code travels in a file. The module's class is the one installed here; its forward is traced again, and must be what
it was when the file was written.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from simam_inject.attention import SimAM
from simam_inject.errors import FileError
from simam_inject.rewriting.classes import SPECIFICATION, put
from simam_inject.rewriting.records import Specification
from simam_inject.rewriting.surgeon import prepare
from simam_inject.tracing.inputs import Example
from simam_inject.tracing.recording import record
from simam_inject.tracing.values import rebuild

_ADAPTERS = {"ultralytics": "simam_inject.integrations.ultralytics"}
"""Libraries that build their models anew behind the user's back: what gets ready for it, by top-level package."""


def restore(plain: nn.Module, specification: Any, methods: Any) -> nn.Module:
    """Swap the class of an unpickled stock module, as `specification` says. Called by pickle.

    Args:
        plain: the module, of its stock class, with its SimAM children.
        specification: what `Specification.to_dict` gave.
        methods: instance attributes that are methods of the module itself, with the methods' names.

    Raises:
        FileError: the specification is not valid, or the installed library computes something else than it did when
            the file was written.
    """
    wanted = Specification.from_dict(specification)
    name = type(plain).__name__
    _prepare_library(plain)
    for edit in wanted.edits:
        if not isinstance(plain._modules.get(edit.child), SimAM):
            raise FileError(f"the file's {name} lacks the SimAM named {edit.child}")
    _bind(plain, methods)
    inner = [edit for edit in wanted.edits if edit.value]
    call = None
    children = {edit.child: plain._modules.pop(edit.child) for edit in wanted.edits}
    try:
        if inner:
            args, kwargs = rebuild(wanted.arguments)
            call = record(plain, Example(args, kwargs))
        operation = prepare(plain, call, wanted.edits)
    except Exception as error:  # whatever a damaged or hostile description makes the tracer say
        raise FileError(f"SimAM cannot be put back into the file's {name}: {error}") from None
    finally:
        plain._modules.update(children)
    found = dict(operation.specification.fingerprints)
    for method, mark in wanted.fingerprints:
        if method in found and found[method] != mark:
            raise FileError(
                f"{name}.{method} of the installed library computes something else than when the file was written; "
                "install the version it was written with, eject() there and save again"
            )
    plain.__dict__[SPECIFICATION] = wanted
    put(plain, operation.swapped)
    return plain


def _prepare_library(module: nn.Module) -> None:
    adapter = _ADAPTERS.get(type(module).__module__.partition(".")[0])
    if adapter is not None:
        import_module(adapter)


def _bind(module: nn.Module, methods: Any) -> None:
    name = type(module).__name__
    if not isinstance(methods, dict):
        raise FileError(f"the file's {name} has no table of methods")
    for attribute, method in methods.items():
        is_method = isinstance(getattr(type(module), str(method), None), type(restore))
        if not is_method or not isinstance(attribute, str):
            raise FileError(f"the file's {name} binds {attribute!r} to {method!r}, which is not a method of that class")
        module.__dict__[attribute] = getattr(module, method)


torch.serialization.add_safe_globals([SimAM, restore])
