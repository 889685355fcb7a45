"""Runs of twins that verification compares: seeds, dtypes, gradients, and SimAM switched off for the moment."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from simam_inject.attention import SimAM
from simam_inject.dataflow.example import Example, copied
from simam_inject.dataflow.twin import set_mode, to_clone
from simam_inject.editing.attach import attended_in
from simam_inject.verification.outputs import tensors_of

SEED = 0x51A4_0001
"""A seed that no forward would set by itself."""
Marks = tuple[tuple[str, int, int | None], ...]


def tensor_marks(model: nn.Module) -> Marks:
    """Name, identity and version of every parameter and buffer: another if somebody writes into it."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return tuple((name, id(t), None if t.is_inference() else t._version) for name, t in tensors)


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


@dataclass(slots=True)
class Run:
    """What one forward gave."""

    output: Any
    gradients: dict[str, torch.Tensor] | None = None


def run(
    model: nn.Module,
    example: Example,
    *,
    training: bool,
    convert: Any = copied,
    gradients: bool = False,
    seed: int = SEED,
) -> Run:
    """One forward, by default from the same random state as every other."""
    set_mode(model, training)
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(seed)
    args, kwargs = example.fresh(convert)
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        output = model(*args, **kwargs)
        return Run(output, gradients_of(model, output) if gradients else None)


def gradients_of(model: nn.Module, output: Any) -> dict[str, torch.Tensor] | None:
    """Gradients of all parameters for a fixed weighting of the output."""
    losses = []
    for tensor in tensors_of(output):
        if tensor.is_floating_point() and tensor.requires_grad:
            weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
            losses.append((tensor.flatten() * weights).mean())
    names = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not losses or not names:
        return None
    total = torch.stack([loss.double() for loss in losses]).sum()
    found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
        total, [parameter for _, parameter in names], allow_unused=True
    )
    return {name: grad for (name, _), grad in zip(names, found, strict=True) if grad is not None}


def to_dtype(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make twins of tensors in this dtype; integers stay what they are."""

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        twin = tensor.detach().clone()
        return twin.to(dtype) if twin.is_floating_point() else twin

    return convert


class Parameters:
    """One copy of a model's parameters in each dtype, for all its twins; every twin has buffers of its own."""

    def __init__(self) -> None:
        self.copies: dict[tuple[int, torch.dtype | None], torch.Tensor] = {}
        self.are_shared = True

    def convert(self, dtype: torch.dtype | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
        """Make the tensors of one twin, in a dtype or in their own."""
        make = to_clone if dtype is None else to_dtype(dtype)

        def convert(tensor: torch.Tensor) -> torch.Tensor:
            if not self.are_shared or not isinstance(tensor, nn.Parameter):
                return make(tensor)
            key = id(tensor), dtype
            if key not in self.copies:
                self.copies[key] = make(tensor)
            return self.copies[key].detach()

        return convert

    def look_for_writes(self) -> None:
        """Give every twin parameters of its own from now on, if a forward has written into them."""
        if any(copy._version for copy in self.copies.values()):
            self.are_shared = False
            self.copies.clear()


def dtype_of(output: Any) -> torch.dtype | None:
    """The dtype of the first floating point tensor of an output."""
    return next((tensor.dtype for tensor in tensors_of(output) if tensor.is_floating_point()), None)
