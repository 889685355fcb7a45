"""One epoch of every task, in a process of its own: `python tasks.py NAME FOLDER`. One set of polygons serves four."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ultralytics import RTDETR, YOLO

from simam_inject import inject, injected
from tests.yolo.drawing import draw_image

RECIPE = {
    "version": 1,
    "rules": [
        {"block": ["C2f", "C3k2", "RepC3", "HGBlock"], "after": "output", "pick": {"last": 1, "per": "reduction"}},
        {"path": "model.1", "after": "conv", "optional": True},
    ],
}


def draw(folder: Path, task: str) -> str:
    """The set in the form that the task reads."""
    for split in ("train", "val"):
        for index in range(4):
            image, lines = draw_image(np.random.default_rng((split == "val", index)))
            if task == "classify":
                place = folder / split / ("red", "blue")[index % 2]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{index}.png")
                continue
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / "images" / split / f"{index}.png")
            labels = "\n".join(label(line, task) for line in lines)
            (folder / "labels" / split / f"{index}.txt").write_text(labels)
    if task == "classify":
        return str(folder)
    points = "kpt_shape: [4, 2]\nflip_idx: [1, 0, 3, 2]\n" if task == "pose" else ""
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: red, 1: blue}}\n{points}")
    return str(file)


def label(line: str, task: str) -> str:
    kind, *box = line.split()
    x, y, width, height = map(float, box)
    corners = [(x + i * width / 2, y + j * height / 2) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    written = " ".join(f"{number:.5f}" for corner in corners for number in corner)
    return f"{line.strip()} {written}" if task == "pose" else f"{kind} {written}"


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    build = RTDETR if "rtdetr" in name else YOLO
    model = build(f"{name}.yaml")
    side = 128 if "rtdetr" in name else 64
    inject(model, RECIPE, example_inputs=torch.rand(1, 3, side, side), verify=False)
    count = len(injected(model))
    assert count >= 2
    seen = []
    model.add_callback(
        "on_train_epoch_end",
        lambda trainer: seen.append((len(injected(trainer.model)), len(injected(trainer.ema.ema)))),
    )
    data = draw(folder / name, model.task)
    model.train(
        data=data, epochs=1, imgsz=side, batch=4, workers=0, device="cpu", plots=False, verbose=False,
        project=str(folder / "runs"), name=name, exist_ok=True,
    )  # fmt: skip
    assert seen == [(count, count)], seen
    best = build(str(folder / "runs" / name / "weights" / "best.pt"))
    assert len(injected(best)) == count
    best.predict(Image.new("RGB", (64, 64)), imgsz=side, device="cpu", verbose=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
