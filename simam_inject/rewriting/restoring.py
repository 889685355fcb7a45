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
from simam_inject.rewriting.recorded import prepare_again
from simam_inject.rewriting.records import Specification

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
    children = {edit.child: plain._modules.pop(edit.child) for edit in wanted.edits}
    try:
        operation = prepare_again(f"the file's {name}", plain, wanted)
    finally:
        plain._modules.update(children)
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
