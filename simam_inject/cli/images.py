"""Images in a folder as batches for a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from simam_inject.cli.preparing import Prepared

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_BATCH = 8


def images_in(folder: Path, limit: int) -> list[Path]:
    """The images in a folder and its subfolders, in alphabetical order; spread over all of them if there are more.

    Raises:
        ModelError: There is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ModelError(f"no image found in {str(folder)!r}; supported formats: {', '.join(sorted(_SUFFIXES))}")
    return found if len(found) <= limit else [found[index * len(found) // limit] for index in range(limit)]


def batches_of(prepared: Prepared, folder: Path, limit: int) -> Iterator[Any]:
    """Batches of at most 8 images, resized to the model's input size, with the normalization of its library.

    Raises:
        ModelError: The folder has no image, or the model does not take batches of images.
    """
    from simam_inject.adapters import network_of
    from simam_inject.dataflow.example import declared_size

    built = prepared.built
    if built.takes_list or len(built.input_shapes) > 1:
        raise ModelError(
            f"{built.name} does not take batches of images of one size, so it cannot be calibrated on a folder"
        )
    size = prepared.size or (
        built.input_shapes[0][1:] if built.input_shapes else declared_size(network_of(built.model))
    )
    if len(size) != 3 or size[0] not in (1, 3):
        raise ModelError(f"{built.name} takes inputs of size {'x'.join(map(str, size))}, not images")
    paths = images_in(folder, limit)
    return _load(paths, (size[0], size[1], size[2]), built.normalization)


def _load(
    paths: list[Path], size: tuple[int, int, int], normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> Iterator[Tensor]:
    import torch
    from PIL import Image
    from torchvision.transforms import functional

    channels, height, width = size
    for start in range(0, len(paths), _BATCH):
        images = []
        for path in paths[start : start + _BATCH]:
            with Image.open(path) as image:
                resized = image.convert("L" if channels == 1 else "RGB").resize((width, height))
            tensor = functional.to_tensor(resized)
            images.append(tensor if normalization is None else functional.normalize(tensor, *normalization))
        yield torch.stack(images)
