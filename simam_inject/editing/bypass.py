"""SimAM switched off for the moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import attended_in
from simam_inject.errors import ModelError


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Every SimAM of the model, and of copies that are made inside, is the identity until the end."""
    modules = [entry.attention for entry in attended_in(model) if entry.attention is not None]
    attentions = [module for module in modules if isinstance(module, SimAM)]
    bypass = _Bypass()
    others = [module.register_forward_hook(bypass) for module in modules if not isinstance(module, SimAM)]
    with _LOCK:
        for module in attentions:
            module._bypasses = (*module._bypasses, bypass)
    try:
        yield
    finally:
        bypass.active = False
        with _LOCK:
            for module in attentions:
                module._bypasses = tuple(other for other in module._bypasses if other is not bypass)
        for handle in others:
            handle.remove()


_LOCK = threading.Lock()
"""Several threads may bypass one model."""


class _Bypass:
    """One use of `bypassed`, which copies share. Of attention other than SimAM, it is a forward hook."""

    active = True

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return args[0] if self.active else output

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not self.active:
            return super().__reduce_ex__(protocol)
        raise ModelError("a model that is pickled or saved inside bypass(model) would stay bypassed: leave it first")
