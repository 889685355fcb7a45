"""What the zoo returns: a model and what its library declares about its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


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
    """Shape of each input for one image, including the batch dimension; empty if not known."""
    takes_list: bool = False
    """True for torchvision's detectors: they take a list of images without a batch dimension."""
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation of each channel of images in [0, 1]; None if the model takes images as they are."""

    @property
    def example_inputs(self) -> tuple[Any, ...] | None:
        """Arguments of one forward: uniform noise in [0, 1), always the same; None without `input_shapes`."""
        import torch

        generator = torch.Generator().manual_seed(0)
        tensors = tuple(torch.rand(shape, generator=generator, device="cpu") for shape in self.input_shapes)
        return ([*tensors],) if self.takes_list else tensors or None

    def with_size(self, size: tuple[int, ...]) -> ZooModel:
        """The same model with inputs of another size: channels, then the spatial sizes."""
        shape = size if self.takes_list else (1, *size)
        return replace(self, input_shapes=(shape,) * max(1, len(self.input_shapes)))
