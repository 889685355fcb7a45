"""Folders of images that a small network learns in seconds: stripes that lie, stripes that stand, and no stripes."""

import numpy as np
from PIL import Image

KINDS = ("lying", "standing")


def stripes(kind, side, dice, deviation=15):
    """One image of `side` x `side` pixels with noise of this deviation; `kind` is lying, standing or noise."""
    wave = 80 * np.sin(np.arange(side) * dice.uniform(0.8, 1.2) + dice.uniform(0, 6))
    plane = {"lying": wave[:, None], "standing": wave[None], "noise": np.zeros((1, 1))}[kind]
    pixels = 128 + plane[..., None] + dice.normal(0, deviation, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_stripes(folder, count, side, dice=None, kinds=KINDS, deviation=15):
    """A folder for each kind, with `count` images."""
    dice = np.random.default_rng(0) if dice is None else dice
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            stripes(kind, side, dice, deviation).save(folder / kind / f"{index:02d}.png")
