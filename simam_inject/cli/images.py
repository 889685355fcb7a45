"""Images in a folder as batches for a model."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from simam_inject.adapters import network_of
from simam_inject.dataflow.example import declared_size
from simam_inject.errors import ModelError
from simam_inject.zoo.records import Normalization

if TYPE_CHECKING:
    from simam_inject.cli.preparing import Prepared

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_BATCH = 16


def images_in(folder: Path, limit: int) -> list[Path]:
    """The images in a folder and its subfolders, in alphabetical order; spread over all of them if there are more.

    Raises:
        ModelError: There is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ModelError(f"there is no image in {str(folder)!r}; known are {', '.join(sorted(_SUFFIXES))}")
    return found if len(found) <= limit else [found[index * len(found) // limit] for index in range(limit)]


def batches_of(prepared: Prepared, folder: Path, limit: int) -> Iterable[Tensor]:
    """Batches of at most 16 images, resized to the model's input size, with the normalization of its library.

    In mixed order: of folders of classes each batch would else hold one class, whose statistics are not the set's.

    Raises:
        ModelError: The folder has no image, or the model does not take batches of images.
    """
    built = prepared.built
    if built.takes_list or len(built.input_shapes) > 1:
        raise ModelError(
            f"{built.name} does not take batches of images of one size, and cannot be calibrated on a folder"
        )
    size = prepared.size or (
        built.input_shapes[0][1:] if built.input_shapes else declared_size(network_of(built.model))
    )
    if len(size) != 3 or size[0] not in (1, 3):
        raise ModelError(f"{built.name} takes inputs of size {'x'.join(map(str, size))}, not images")
    paths = images_in(folder, limit)
    random.Random(0).shuffle(paths)
    return DataLoader(_Pictures(paths, tuple(size), built.normalization), _BATCH)


class _Pictures(Dataset[Tensor]):
    def __init__(self, paths: list[Path], size: tuple[int, ...], normalization: Normalization | None) -> None:
        self.paths, self.size, self.normalization = paths, size, normalization

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        channels, height, width = self.size
        try:
            with Image.open(self.paths[index]) as image:
                resized = image.convert("L" if channels == 1 else "RGB").resize((width, height))
        except OSError as error:
            raise ModelError(f"{self.paths[index]} cannot be read as an image") from error
        pixels = functional.to_tensor(resized)
        return pixels if self.normalization is None else functional.normalize(pixels, *self.normalization)
