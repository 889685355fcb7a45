"""What can be injected: an `nn.Module` in its own form, not yet wrapped, compiled or scripted, with real tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from typing_extensions import TypeVar

from simam_inject.errors import ModelError

ModelT = TypeVar("ModelT", bound=nn.Module, default=nn.Module)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Classes of torch that give their children names, and compute nothing of their own."""
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
"""Normalization layers that can be folded into a convolution or linear layer beside them."""
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


def check_module(model: object) -> nn.Module:
    """Return the model, or raise an error for anything else.

    Raises:
        ModelError: it is a class, a function, a name, or another object.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, found {_describe(model)}")
    return model


def check_injectable(thing: object, first: str = "inject") -> None:
    """Raise an error for a model that cannot be injected.

    Args:
        first: what to do before the model is wrapped, for the message.

    Raises:
        ModelError: not a module; wrapped in DDP, FSDP or torch.compile, or sharded; scripted; with a `__call__` that
            runs no hooks; with lazy or meta tensors.
    """
    model = check_module(thing)
    names = {base.__name__ for base in type(model).__mro__ if base.__module__.startswith("torch.")}
    for name, label in _WRAPPERS.items():
        if name in names:
            raise ModelError(f"this model is already wrapped ({label}): {first} first, then wrap the same model")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "this model is a torch.jit.ScriptModule, whose code is compiled: inject the Python model, then "
            "torch.jit.trace it"
        )
    if not runs_hooks(model):
        raise ModelError(
            f"{type(model).__name__} overrides __call__, so hooks on it do not run: rename the method to forward"
        )
    check_has_data(model)


def check_has_data(model: nn.Module) -> None:
    """Raise an error for a model whose tensors have no data, or not all of it.

    Raises:
        ModelError: a parameter or buffer is lazy, on the meta device, or sharded.
    """
    if any("FSDPModule" in {base.__name__ for base in type(module).__mro__} for module in model.modules()):
        raise ModelError("this model is already sharded (fully_shard): inject and verify it first, then shard")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"{name} of this model has no shape yet (a lazy module): run one forward first")
        if tensor.is_meta:
            raise ModelError(
                f"this model is on the meta device ({name}): give it real tensors first (model.to_empty(device=...))"
            )


def runs_hooks(module: nn.Module) -> bool:
    """Calling the module goes through `nn.Module.__call__`, which runs its hooks, if only by `super().__call__(x)`."""
    return all(map(_calls_base, own_calls(module)))


def own_calls(module: nn.Module) -> list[Any]:
    """What its classes have in the place of `nn.Module.__call__`, apart from those of torch."""
    kinds = type(module).__mro__
    found = [vars(kind)["__call__"] for kind in kinds[: kinds.index(nn.Module)] if "__call__" in vars(kind)]
    return [call for call in found if not str(getattr(call, "__module__", "")).startswith("torch.")]


def _calls_base(function: Any) -> bool:
    """It names `__call__`, and `super`, a class or a module that has it: `self.part.__call__(x)` is another one."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or "__call__" not in code.co_names:
        return False
    return (
        "super" in code.co_names or bool(code.co_freevars) or not function.__globals__.keys().isdisjoint(code.co_names)
    )


def has_children(module: nn.Module) -> bool:
    """The module has parts that its forward calls."""
    children = sum(child is not None for child in module._modules.values())
    return children > (_weight_modules(module) is not None)


def called_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that a forward calls, once, with its first dotted path.

    Those that compute a weight belong to the module that has it: a convolution with `spectral_norm` is a convolution.
    """
    weights: set[int] = set()
    for path, module in model.named_modules():
        inside = _weight_modules(module)
        if inside is not None:
            weights.update(map(id, inside.modules()))
        if id(module) not in weights:
            yield path, module


def _weight_modules(module: nn.Module) -> nn.Module | None:
    """What `torch.nn.utils.parametrize` has added to the module."""
    found = dict(module._modules.items()).get("parametrizations")  # the table of a scripted module has no `get`
    parts = found.values() if isinstance(found, nn.ModuleDict) else ()
    return found if any(isinstance(part, ParametrizationList) for part in parts) else None


def is_taken(module: nn.Module, name: str) -> bool:
    """The module has an attribute of this name, apart from those that a `__getattr__` of its class makes up."""
    own = {*module.__dict__, *module._modules, *module._parameters, *module._buffers}
    return name in own or inspect.getattr_static(type(module), name, None) is not None


def _describe(thing: object) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}; give an instance of it"
    if inspect.isroutine(thing):
        return f"the function {thing.__name__}; give the model that it returns"
    if isinstance(thing, str):
        return f"{thing!r}; build it first, e.g. torchvision.models.resnet18()"
    return f"an object of type {type(thing).__name__}"
