"""SimAM switched off for the moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import attended_in


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Every SimAM of the model is the identity inside, and as it was afterwards."""
    modules = [entry.attention for entry in attended_in(model)]
    attentions = [module for module in modules if isinstance(module, SimAM)]
    others = [_as_identity(module) for module in modules if module is not None and not isinstance(module, SimAM)]
    with _LOCK:
        for module in attentions:
            count, before = _BYPASSES.get(module, (0, module.bypassed))
            _BYPASSES[module] = count + 1, before
            module.bypassed = True
    try:
        yield
    finally:
        with _LOCK:
            for module in attentions:
                count, before = _BYPASSES.pop(module)
                if count > 1:
                    _BYPASSES[module] = count - 1, before
                else:
                    module.bypassed = before
        for handle in others:
            handle.remove()


_BYPASSES: WeakKeyDictionary[SimAM, tuple[int, bool]] = WeakKeyDictionary()
"""How many `bypassed` a SimAM is inside of, in all threads, and whether it was bypassed before the first."""
_LOCK = threading.Lock()


def _as_identity(module: nn.Module) -> Any:
    return module.register_forward_hook(lambda _module, args, _output: args[0])
