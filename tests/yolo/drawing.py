"""A detection set of a few small images: rectangles of two colours on a gradient with noise."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
COLOURS = ((230, 60, 50), (60, 90, 230))


def draw_set(folder: Path, count: int = 8, seed: int = 0) -> Path:
    """Draw `count` images for training and half as many for validation; returns the data set's YAML file."""
    for split, number in (("train", count), ("val", count // 2)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(number):
            image, labels = draw_image(np.random.default_rng((seed, split == "val", index)))
            Image.fromarray(image).save(folder / "images" / split / f"{index}.png")
            (folder / "labels" / split / f"{index}.txt").write_text("".join(labels))
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: red, 1: blue}}\n")
    return file


def draw_image(random: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    ramp = np.linspace(40, 160, SIDE)[:, None, None] * np.ones((1, SIDE, 3))
    image = ramp + random.normal(0, 15, ramp.shape)
    labels = []
    for _ in range(random.integers(1, 4)):
        kind = int(random.integers(2))
        width, height = random.integers(12, 30, 2)
        left, top = random.integers(0, SIDE - width), random.integers(0, SIDE - height)
        image[top : top + height, left : left + width] = COLOURS[kind]
        centre = (left + width / 2) / SIDE, (top + height / 2) / SIDE
        labels.append(f"{kind} {centre[0]:.5f} {centre[1]:.5f} {width / SIDE:.5f} {height / SIDE:.5f}\n")
    return image.clip(0, 255).astype(np.uint8), labels
