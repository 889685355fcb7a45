"""What the zoo returns: a model, and what its library says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One model, ready to be injected."""

    name: str
    """As it was asked for."""
    model: Any
    """An `nn.Module`, or an ultralytics `YOLO` object."""
    source: str
    """`torchvision`, `timm`, `ultralytics`, or the file or module of a factory."""
    note: str
    """Which weights it has, and which of several models of that name it is."""
    input_shapes: tuple[tuple[int, ...], ...] = ()
    """Shape of each input, a batch of one included, that its library made it for; empty if not known."""
    takes_list: bool = False
    """True for torchvision's detectors: they take a list of images without the batch dimension."""
    normalization: Normalization | None = None
    """What its library subtracts from and divides images in [0, 1] by; None for images as they are."""
