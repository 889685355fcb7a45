"""Photographs as inputs of a network, and heat maps over them, for `simam-inject maps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from simam_inject.errors import FileError

GREY = 114
"""Colour of the borders of a letterbox in ultralytics."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph, and the input that is made of it."""

    name: str
    pixels: Tensor
    """C x height x width, from 0 to 1."""
    input: Tensor
    """1 x C x height x width, normalized."""
    box: tuple[int, int, int, int]
    """Top, left, height and width of the photograph in the input; the rest is border."""

    def undo(self, values: Tensor) -> Tensor:
        """Resize a map, h x w over the whole input, to the size of the photograph, without the border."""
        height, width = self.input.shape[2:]
        top, left, inner_height, inner_width = self.box
        whole = interpolate(values[None, None].float(), (height, width), mode="bilinear", align_corners=False)
        inner = whole[:, :, top : top + inner_height, left : left + inner_width]
        return interpolate(inner, tuple(self.pixels.shape[1:]), mode="bilinear", align_corners=False)[0, 0]


def open_picture(path: str | Path, mode: str = "RGB") -> Image.Image:
    """Read an image in one of Pillow's modes of 8 bits, upright as its EXIF data say.

    Raises:
        FileError: it cannot be read as an image, or has pixels of more than 8 bits.
    """
    try:
        with Image.open(path) as file:
            found, image = file.mode, ImageOps.exif_transpose(file).convert(mode)
    except ImportError:  # ultralytics replaces Image.open by one that needs a plugin for unknown formats
        raise FileError(f"{path} cannot be read as an image: unknown format") from None
    except Exception as error:  # each format fails in ways of its own
        raise FileError(f"{path} cannot be read as an image: {error}") from None
    if found.startswith(("I", "F")):  # the conversion cuts values at 255
        raise FileError(f"{path} has pixels of more than 8 bits (Pillow's mode {found}): convert it first")
    return image


def photograph(
    path: Path, size: tuple[int, int, int], *, normalization: Any = None, letterbox: bool = False
) -> Photograph:
    """Read a photograph and resize it to the input size of a network.

    Args:
        path: a file that Pillow can read.
        size: channels (1 or 3), height and width of the input.
        normalization: mean and deviation of each channel, or None.
        letterbox: keep the aspect ratio, with grey borders, as ultralytics does; if False, stretch.

    Raises:
        FileError: see `open_picture`.
    """
    from torchvision.transforms.functional import normalize, pil_to_tensor

    channels, height, width = size
    image = open_picture(path, "L" if channels == 1 else "RGB")
    top = left = 0
    inner_height, inner_width = height, width
    if letterbox:
        scale = min(height / image.height, width / image.width)
        inner_height, inner_width = (max(1, round(side * scale)) for side in (image.height, image.width))
        top, left = round((height - inner_height) / 2 - 0.1), round((width - inner_width) / 2 - 0.1)
    framed = Image.new(image.mode, (width, height), GREY if channels == 1 else (GREY,) * 3)
    framed.paste(image.resize((inner_width, inner_height), Image.Resampling.BILINEAR), (left, top))
    pixels, seen = (pil_to_tensor(picture).float() / 255 for picture in (image, framed))
    if normalization is not None:
        seen = normalize(seen, *normalization)
    return Photograph(path.name, pixels, seen[None], (top, left, inner_height, inner_width))


def draw_maps(rows: Sequence[tuple[Photograph, Mapping[str, Tensor]]], unit: str, path: Path) -> None:
    """Draw a row for each photograph: each of its maps over the photograph in grey, with a colour bar.

    Args:
        rows: photographs, each with its maps (h x w over the whole input) by title; the same titles in each row.
        unit: name of the values of a map.
        path: the file; its suffix is the format, one that matplotlib can write. No display is needed.

    Raises:
        FileError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = 1 + len(rows[0][1])
    heights = [max(0.5, min(2.0, shot.pixels.shape[1] / shot.pixels.shape[2])) for shot, _ in rows]
    figure = Figure(figsize=(3.4 * columns, sum(3 * height + 0.7 for height in heights)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes, (shot, maps) in zip(grid, rows, strict=True):
        for axis in axes:
            axis.set_axis_off()
        grey = shot.pixels.mean(0).numpy()
        axes[0].imshow(shot.pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        axes[0].set_title(shot.name, fontsize=9, parse_math=False)
        for axis, (title, values) in zip(axes[1:], maps.items(), strict=True):
            least, most = values.min().item(), values.max().item()
            axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
            drawn = axis.imshow(shot.undo(values).numpy(), cmap="turbo", alpha=0.6, vmin=least, vmax=most)
            axis.set_title(f"{title}\n{unit} {least:.3f} to {most:.3f}", fontsize=9, parse_math=False)
            figure.colorbar(drawn, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be written: {error}") from None
