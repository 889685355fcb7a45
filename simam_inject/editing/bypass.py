"""SimAM switched off for the moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

from torch import nn

from simam_inject.editing.attach import attended_in
from simam_inject.errors import ModelError


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Every SimAM of the model, and of copies that are made inside, is the identity until the end."""
    modules: list[Any] = [entry.attention for entry in attended_in(model) if entry.attention is not None]
    bypass = _Bypass()
    with _LOCK:
        for module in modules:
            module._bypasses = (*getattr(module, "_bypasses", ()), bypass)
    try:
        yield
    finally:
        bypass.active = False
        with _LOCK:
            for module in modules:
                others = tuple(other for other in getattr(module, "_bypasses", ()) if other is not bypass)
                if others:
                    module._bypasses = others
                else:  # one module may be at several sites
                    vars(module).pop("_bypasses", None)


_LOCK = threading.Lock()
"""Several threads may bypass one model."""


class _Bypass:
    """One use of `bypassed`, which copies share; it is listed in `_bypasses` of each attention module."""

    active = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.active:
            raise ModelError("a model that is pickled inside bypass(model) would stay bypassed: leave it first")
        return SimpleNamespace, (), {"active": False}  # in a copy that was made inside
