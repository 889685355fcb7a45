"""Runs of twins of a model, with and without its SimAM."""

from __future__ import annotations

import random
from typing import Any

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
    """Name, identity and version of every parameter and buffer: both change when it is written to."""
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
