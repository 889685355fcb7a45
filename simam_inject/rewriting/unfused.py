"""A fused class on top of the rewritten one, and a way to look below it.

A fused forward calls no SimAM, so whoever counts or checks them works on the rewritten forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from simam_inject.rewriting.classes import put

UNFUSED = "_simam_unfused_class"
"""Attribute of a fused class: the rewritten class that it stands on."""


def unfused_class(module: nn.Module) -> type[nn.Module] | None:
    """The rewritten class of a fused module; None for any other module."""
    unfused: type[nn.Module] | None = getattr(type(module), UNFUSED, None)
    return unfused


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Every fused module runs its rewritten forward inside, and its fused one afterwards."""
    fused = [(module, type(module)) for module in model.modules() if unfused_class(module) is not None]
    try:
        for module, own in fused:
            put(module, getattr(own, UNFUSED))
        yield
    finally:
        for module, own in fused:
            put(module, own)
