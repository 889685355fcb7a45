"""A model from the zoo, with the example inputs that go with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from simam_inject.errors import ModelError
from simam_inject.zoo import ZooModel


def example_inputs(built: ZooModel, size: tuple[int, ...] | None = None) -> tuple[Any, ...] | None:
    """Positional inputs for one forward with one image, noise in [0, 1) from a generator of its own.

    Args:
        built: The model; asked for the number, the form and, without `size`, the shape of its inputs.
        size: Channels and spatial sizes that the user asks for.

    Returns:
        The inputs; None where the model itself declares its size (timm, ultralytics) or nobody knows it.
    """
    if size is None and built.source != "torchvision":
        return None
    shapes = built.input_shapes
    if size is not None:
        shape = size if built.takes_list else (1, *size)
        shapes = (shape,) * max(1, len(shapes))
    noise = torch.Generator().manual_seed(0)
    images = [torch.rand(shape, generator=noise) for shape in shapes]
    return (images,) if built.takes_list else tuple(images)


@contextmanager
def sized(size: tuple[int, ...] | None) -> Iterator[None]:
    """Say to what a model cannot run on `64x64` that this is channels x length, which only a 1-D network wants."""
    try:
        yield
    except ModelError as error:
        if size is None or len(size) != 2:
            raise
        first, second = size
        raise ModelError(
            f"{error}\n--input-size {first}x{second} is channels x length; "
            f"an image is channels x height x width: 3x{first}x{second}"
        ) from error
