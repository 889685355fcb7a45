"""What the zoo returns: a model and what its library declares about it, or one kind of error for whatever fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from simam_inject.errors import ModelError, describe_exception


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

        noise = torch.Generator().manual_seed(0)
        images = [torch.rand(shape, generator=noise) for shape in self.input_shapes]
        return ((images,) if self.takes_list else tuple(images)) or None

    def with_size(self, size: tuple[int, ...]) -> ZooModel:
        """The same model with inputs of another size: channels, then the spatial sizes."""
        shape = size if self.takes_list else (1, *size)
        return replace(self, input_shapes=(shape,) * max(1, len(self.input_shapes)))


def describe_weights(library: str, *, pretrained: bool) -> str:
    """The part of a note that says which weights a model has."""
    return f"{library}'s pretrained weights" if pretrained else "random weights"


@contextmanager
def fetching(name: str, *, pretrained: bool) -> Iterator[None]:
    """Turn whatever a library raises while it builds a model, or fetches its weights, into one `ModelError`.

    A download fails in many ways (no network, no such file, a bad hash, a full disk, a hub that is set offline), and
    each library lets its own client's exceptions through; all of them have a sentence that can be shown.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        sentence = describe_exception(error)
        if not pretrained:
            raise ModelError(f"{name}: cannot build the model: {sentence}.") from error
        raise ModelError(
            f"{name}: cannot load the pretrained weights: {sentence}. Without `pretrained` the weights are random."
        ) from error
