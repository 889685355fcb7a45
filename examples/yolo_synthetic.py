"""Train YOLOv8n with and without SimAM, from the same initial weights, on a small synthetic detection set.

    python examples/yolo_synthetic.py --images 400 --epochs 30 --seeds 0 1 2

Coloured shapes (disc, square, triangle, ring, cross) of many sizes, some dim, some partly covered, on crops of two
photographs that come with ultralytics. Both networks see the same images in the same order: a seed fixes the initial
weights, which are bit-identical, and the augmentation. With networks this small and few seeds, a difference below the
spread between seeds is not meaningful.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

SHAPES = ("disc", "square", "triangle", "ring", "cross")
SIDE = 160


def photographs() -> list[Image.Image]:
    """The photographs that ultralytics ships."""
    from ultralytics.utils import ASSETS

    return [Image.open(ASSETS / name).convert("RGB") for name in ("bus.jpg", "zidane.jpg")]


def draw_background(photos: list[Image.Image], random: np.random.Generator) -> Image.Image:
    """A crop at a random scale, mirrored, darkened or blurred."""
    photo = photos[random.integers(len(photos))]
    side = int(random.integers(SIDE, min(photo.size)))
    left, top = (int(random.integers(length - side + 1)) for length in photo.size)
    crop = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    crop = ImageEnhance.Brightness(crop).enhance(random.uniform(0.5, 1.3))
    return crop.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.5)))


def draw_shape(image: Image.Image, kind: int, box: tuple[int, int, int, int], random: np.random.Generator) -> None:
    """One shape, half transparent at times, of a colour near the background's or far from it."""
    left, top, right, bottom = box
    layer = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(layer)
    colour = (*(int(c) for c in random.integers(0, 256, 3)), int(random.integers(110, 256)))
    third = (right - left) // 3
    match SHAPES[kind]:
        case "disc":
            pen.ellipse(box, fill=colour)
        case "square":
            pen.rectangle(box, fill=colour)
        case "triangle":
            pen.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill=colour)
        case "ring":
            pen.ellipse(box, outline=colour, width=max(2, third // 2))
        case "cross":
            pen.rectangle((left + third, top, right - third, bottom), fill=colour)
            pen.rectangle((left, top + third, right, bottom - third), fill=colour)
    image.paste(layer, (0, 0), layer)


def draw_example(photos: list[Image.Image], random: np.random.Generator) -> tuple[Image.Image, str]:
    """An image and its labels."""
    image, lines = draw_background(photos, random), []
    for _ in range(random.integers(1, 6)):
        kind, side = int(random.integers(len(SHAPES))), int(random.integers(12, 56))
        left, top = (int(length) for length in random.integers(0, SIDE - side, 2))
        draw_shape(image, kind, (left, top, left + side, top + side), random)
        centre = (left + side / 2) / SIDE, (top + side / 2) / SIDE
        lines.append(f"{kind} {centre[0]:.5f} {centre[1]:.5f} {side / SIDE:.5f} {side / SIDE:.5f}")
    noise = random.normal(0, 8, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)), "\n".join(lines)


def draw_set(folder: Path, count: int) -> Path:
    """`count` images to train on and half as many to validate; returns the YAML file."""
    photos = photographs()
    for split, number in (("train", count), ("val", count // 2)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            image, labels = draw_example(photos, np.random.default_rng((split == "val", index)))
            image.save(folder / "images" / split / f"{index:04}.png")
            (folder / "labels" / split / f"{index:04}.txt").write_text(labels)
    file = folder / "shapes.yaml"
    names = ", ".join(f"{index}: {name}" for index, name in enumerate(SHAPES))
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{{names}}}\n")
    return file


def train(data: Path, recipe: str | None, seed: int, options: argparse.Namespace) -> list[float]:
    """mAP50-95 on the validation images after every epoch."""
    from ultralytics import YOLO

    from simam_inject import inject, injected
    from simam_inject.integrations.ultralytics import ramp

    model = YOLO("yolov8n.yaml")
    if recipe is not None:
        inject(model, recipe)
        if options.ramp:
            ramp(model, epochs=options.ramp)
    curve: list[float] = []

    def note(trainer: Any) -> None:
        if len(curve) < options.epochs:  # the event comes once more, for the final evaluation
            curve.append(float(trainer.metrics["metrics/mAP50-95(B)"]))

    model.add_callback("on_fit_epoch_end", note)
    model.train(
        data=str(data), epochs=options.epochs, imgsz=options.imgsz, batch=16, seed=seed, device=options.device,
        workers=0, optimizer="SGD", lr0=0.02, warmup_epochs=1, close_mosaic=5, pretrained=False, plots=False,
        verbose=False, project=str(data.parent / "runs"), name=f"{recipe or 'plain'}-{seed}", exist_ok=True,
    )  # fmt: skip
    assert bool(injected(model)) == (recipe is not None), "the trained model is not the one that was asked for"
    return curve


def main() -> None:
    """Draw, train, print."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="yolo-neck")
    parser.add_argument("--ramp", type=float, default=0.0, help="epochs in which the strength of SimAM rises to 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=None, help="where the set and the runs go (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = draw_set((options.folder or Path(temporary)).resolve(), options.images)
        curves = {
            (name, seed): train(data, recipe, seed, options)
            for seed in options.seeds
            for name, recipe in (("plain", None), ("SimAM", options.recipe))
        }
    print(f"\nmAP50-95 on {options.images // 2} validation images, recipe {options.recipe}")
    print("epoch  " + "  ".join(f"{name}/{seed:<2}" for name, seed in curves))
    for epoch in range(options.epochs):
        print(f"{epoch + 1:5}  " + "  ".join(f"{curve[epoch]:8.4f}" for curve in curves.values()))
    for name in ("plain", "SimAM"):
        best = [max(curve) for (kind, _), curve in curves.items() if kind == name]
        spread = f" +- {statistics.stdev(best):.4f}" if len(best) > 1 else ""
        print(f"{name}: best {statistics.mean(best):.4f}{spread} over {len(best)} seeds")


if __name__ == "__main__":
    main()
