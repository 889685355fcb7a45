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
from ultralytics.nn.modules.conv import Conv, ConvTranspose, RepConv
from ultralytics.nn.modules.head import Detect

from simam_inject.editing.hooks import input_hook, output_hook
from simam_inject.editing.presence import Presence, presence_of, set_presence
from simam_inject.editing.rewrite import rewritten_methods

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
    """Folding this block would lose a SimAM, or fold across one: a site stands inside, before its activation."""
    if not isinstance(module, (Conv, ConvTranspose, RepConv, RepVGGDW)):
        return False
    inner = [part for name, child in module.named_children() if name != "act" for part in child.modules()]
    return bool(rewritten_methods(module)) or any(
        output_hook(part) or input_hook(part) or rewritten_methods(part) for part in inner
    )


def prune_presence(network: nn.Module) -> None:
    """Let the presence check forget the sites in branches of a head that `fuse()` deleted: only training needs them."""
    presence = presence_of(network)
    if presence is None:
        return
    holders = [(".".join(path), hook) for path, hook in presence.holders if not _is_dropped(network, path)]
    witnesses = [(".".join(path), site) for path, site in presence.witnesses if not _is_dropped(network, path)]
    if len(holders) < len(presence.holders):
        pruned = Presence(holders, witnesses, presence.recipes, presence.example)
        pruned.note_containers(network)
        set_presence(network, pruned)


def _is_dropped(network: nn.Module, path: tuple[str, ...]) -> bool:
    module: Any = network
    for name in path:
        inner = module._modules.get(name)
        if inner is None:
            return isinstance(module, Detect)
        module = inner
    return False


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
