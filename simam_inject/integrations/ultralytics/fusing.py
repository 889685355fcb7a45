"""`fuse()` with SimAM in place: a block that cannot be folded keeps its norm, or its branches, and runs unfused.

`BaseModel.fuse` folds in place and decides by `isinstance`, so for its duration the blocks that must stay get a class
of the same methods that is no `Conv`, `RepConv`, ...: a forward that runs meanwhile, in this thread or another,
computes what it always does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from ultralytics.nn.modules.block import RepVGGDW
from ultralytics.nn.modules.conv import Conv, Conv2, ConvTranspose, RepConv

from simam_inject.rewriting.classes import is_injected, refused_methods, specification_of

_lock = threading.RLock()
_twins: dict[type[nn.Module], type[nn.Module]] = {}


@contextmanager
def shielded(network: nn.Module) -> Iterator[None]:
    """Inside, `fuse()` and `is_fused()` see no block that folding would change the result of."""
    with _lock:
        hidden = [(module, type(module)) for module in network.modules() if must_stay(module)]
        try:
            for module, own in hidden:
                object.__setattr__(module, "__class__", _twin(own))
            yield
        finally:
            for module, own in hidden:
                object.__setattr__(module, "__class__", own)


def must_stay(module: nn.Module) -> bool:
    """Folding this block would lose a SimAM, or fold across one."""
    if isinstance(module, (RepConv, RepVGGDW, Conv2)):  # they merge parallel branches into one convolution
        return any(_holds_inner_site(part, inside=part is not module) for part in module.modules())
    if isinstance(module, (Conv, ConvTranspose)):
        return "forward_fuse" in refused_methods(module) or any(is_injected(child) for child in module.children())
    return False


def _holds_inner_site(module: nn.Module, *, inside: bool) -> bool:
    return is_injected(module) and (inside or any(edit.value for edit in specification_of(module).edits))


def _twin(own: type[nn.Module]) -> type[nn.Module]:
    """A class with the methods of `own` and none of its bases but `nn.Module`."""
    if own not in _twins:
        namespace: dict[str, Any] = {}
        for base in reversed(own.__mro__):
            if base not in nn.Module.__mro__:
                namespace.update(vars(base))
        for name in ("__dict__", "__weakref__"):
            namespace.pop(name, None)
        _twins[own] = type(own.__name__, (nn.Module,), namespace)
    return _twins[own]
