"""Random numbers of two forwards that must be the same, although other threads draw from the same generators."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import numpy as np
import torch

DRAWING = threading.RLock()
"""Held while two forwards run, so that verifications in several threads do not disturb each other."""
if hasattr(os, "register_at_fork"):  # a process that is forked meanwhile would have it locked for ever
    os.register_at_fork(after_in_child=DRAWING._at_fork_reinit)  # type: ignore[attr-defined]


def _generators() -> list[torch.Generator]:
    """The default generators of the devices in use: another one would keep the seed until its device is used."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.default_generator, *(torch.cuda.default_generators if in_use else ())]


def set_seed(seed: int) -> None:
    """Seed torch, `random` and NumPy. As `torch.manual_seed`, but without locks of devices, which a fork would copy."""
    for generator in _generators():
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_states() -> tuple[object, ...]:
    """The states of all generators, to be compared."""
    numpy_state: Any = np.random.get_state()
    ours = (generator.get_state().numpy().tobytes() for generator in _generators())
    return *ours, random.getstate(), bytes(numpy_state[1]), numpy_state[2]
