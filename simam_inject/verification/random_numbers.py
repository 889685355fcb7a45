"""Random numbers of two forwards that must be the same, although other threads draw from the same generators."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_LOCK = threading.Lock()
"""Of the generators, for threads that verify at the same time."""


def _generators() -> list[torch.Generator]:
    """The default generators of all devices in use.

    Others are left alone: a GPU that is not in use would be seeded with their state once it is.
    """
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.default_generator, *(torch.cuda.default_generators if in_use else ())]


def set_seed(seed: int) -> None:
    """Seed torch, `random` and NumPy. As `torch.manual_seed`, but without locks of devices, which a fork would copy."""
    for generator in _generators():
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_states(torch_states: Sequence[torch.Tensor] = ()) -> tuple[object, ...]:
    """The states of the generators, to be compared; those of torch are the given ones, if there are any."""
    numpy_state: Any = np.random.get_state()
    found = torch_states or [generator.get_state() for generator in _generators()]
    return *(state.numpy().tobytes() for state in found), random.getstate(), bytes(numpy_state[1]), numpy_state[2]


class OwnNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager in which operations of this thread draw the numbers of a seed, whatever other threads draw.

    For each operation that draws, the generators have the states of this thread. Without a lock in torch itself,
    another thread can still draw in between, but hardly ever does.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.states = [torch.Generator(one.device).manual_seed(seed).get_state() for one in _generators()]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs or {})
        with _LOCK:
            theirs = self._exchange(self.states)
            try:
                return func(*args, **kwargs or {})
            finally:
                self.states = self._exchange(theirs)

    @staticmethod
    def _exchange(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Set the states of the generators, and return those that they had."""
        found = []
        for generator, state in zip(_generators(), states, strict=False):
            found.append(generator.get_state())
            generator.set_state(state)
        return found
