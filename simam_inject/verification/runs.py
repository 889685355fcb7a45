"""Runs of twins of a model, with and without its SimAM; and SimAM switched off for the moment."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.survey import run_as_written
from simam_inject.dataflow.twin import set_mode, to_clone, twin_of
from simam_inject.editing.attach import attended_in, strip

SEED = 0x51A4_0001
"""A seed that no forward would set by itself."""
Marks = tuple[tuple[str, int, int | None], ...]


def tensor_marks(model: nn.Module) -> Marks:
    """Name, identity and version of every parameter and buffer: another if somebody writes into it."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return tuple((name, id(t), None if t.is_inference() else t._version) for name, t in tensors)


class Twins:
    """Twins of a model, each for one forward: buffers and counters are its own, and parameters a shared copy.

    Args:
        model: an injected model; left as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._parameters: dict[int, Tensor] = {}

    def stock(self) -> nn.Module:
        """The model without its SimAM."""
        twin = self._twin()
        strip(twin)
        return twin

    def injected(self) -> nn.Module:
        """The model with every SimAM at full strength."""
        twin = self._twin()
        for entry in attended_in(twin):
            if isinstance(entry.attention, SimAM):
                entry.attention.strength = 1.0
        return twin

    def run(
        self, twin: nn.Module, example: Example, *, training: bool = False, gradients: bool = False, seed: int = SEED
    ) -> Any:
        """The output of one forward, by default from the same random state as every other."""
        set_mode(twin, training)
        for set_seed in (torch.manual_seed, random.seed, np.random.seed):
            set_seed(seed)
        try:
            with torch.set_grad_enabled(gradients):
                args, kwargs = example.fresh()
                return twin(*args, **kwargs)
        finally:
            if any(copy._version for copy in self._parameters.values()):  # the forward wrote into them
                self._parameters.clear()

    def _twin(self) -> nn.Module:
        twin = twin_of(self.model, self._copy)
        run_as_written(twin)
        return twin

    def _copy(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return to_clone(tensor)
        if id(tensor) not in self._parameters:
            self._parameters[id(tensor)] = to_clone(tensor)
        return self._parameters[id(tensor)].detach()


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
