"""SimAM switched off for the moment."""

from __future__ import annotations

import threading
import weakref
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
    for module in modules:
        if not isinstance(module, SimAM):
            module.register_forward_hook(bypass)
            bypass.others.add(module)
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
        for other in list(bypass.others):
            for key in [key for key, hook in other._forward_hooks.items() if hook is bypass]:
                del other._forward_hooks[key]


_LOCK = threading.Lock()
"""Several threads may bypass one model."""


class _Bypass:
    """One use of `bypassed`, which copies share. Of attention other than SimAM, it is a forward hook."""

    active = True

    def __init__(self) -> None:
        self.others = weakref.WeakSet[nn.Module]()
        """Attention modules of other classes that have this hook: those of the model, and of copies."""

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return args[0] if self.active else output

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The copy of a hook is this one; its module is entered in `memo` before what it consists of is copied."""
        copies = [memo.get(id(other)) for other in self.others]
        self.others.update(each for each in copies if isinstance(each, nn.Module))
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ModelError("a model that is pickled or saved inside bypass(model) would stay bypassed: leave it first")
