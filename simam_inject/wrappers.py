"""What can be injected: an `nn.Module` in its own form, not yet wrapped, compiled or scripted, with real tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from simam_inject.errors import ModelError

_WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP (fully_shard)",
    "OptimizedModule": "torch.compile",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel and `torch.compile`, whose prefixes have no place in a file."""
    while True:
        if type(model).__name__ == "OptimizedModule":
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def check_injectable(model: object) -> None:
    """Refuse what cannot be injected, with the reason and the way out.

    Raises:
        ModelError: not a module; wrapped in DDP, FSDP or torch.compile; scripted; an exported program; on meta tensors.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, found {_describe(model)}")
    names = {base.__name__ for base in type(model).__mro__ if base.__module__.startswith("torch.")}
    for name, label in _WRAPPERS.items():
        if name in names:
            raise ModelError(f"this model is wrapped already ({label}): inject first, then wrap the same model")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "this model is a torch.jit.ScriptModule, whose code is compiled: inject the Python model, then "
            "torch.jit.trace it"
        )
    if any("FSDPModule" in {base.__name__ for base in type(module).__mro__} for module in model.modules()):
        raise ModelError("parts of this model are sharded already (fully_shard): inject first, then shard")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"{name} of this model has no shape yet (a lazy module): run one forward first, then inject"
            )
        if tensor.is_meta:
            raise ModelError(
                f"this model is on the meta device ({name}): give it real tensors first (model.to_empty(device=...)), "
                "then inject"
            )


def _describe(thing: object) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}; give an instance of it"
    return f"{thing!r}" if isinstance(thing, str) else f"a {type(thing).__name__}"
