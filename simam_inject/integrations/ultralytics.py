"""ultralytics: the network inside a `YOLO` object."""

from __future__ import annotations

from torch import nn

from simam_inject.errors import ModelError
from simam_inject.planning.plan import Plan


def network(model: nn.Module) -> nn.Module:
    """The network inside a `YOLO` object.

    Raises:
        ModelError: the object holds an exported file, not a network.
    """
    inner = model.model
    if not isinstance(inner, nn.Module):
        raise ModelError(f"this {type(model).__name__} holds {inner!r}, not a network; load its .pt or .yaml file")
    return inner


def remember(model: nn.Module, plan: Plan) -> None:
    """Keep the injection through training, fusion and export."""


def forget(model: nn.Module) -> None:
    """Leave no trace of an injection."""
