"""Inputs for one model: at the declared size, at the smallest that it takes, and at a second one, not square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.example import Example, declared_size
from simam_inject.dataflow.twin import set_mode, to_clone, twin_of
from simam_inject.zoo import ZooModel

SIDES = (64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)

BOXES = (0.06, 0.12, 0.25, 0.4, 0.6, 0.8, 1.0)
"""Sides of a detector's target boxes, as shares of the image's."""

TRIALS = 4
"""Sizes at which a model that runs in eval mode may fail in train mode before it is taken to be unable to train."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Positional arguments of one forward."""

    args: tuple[Any, ...]

    def __str__(self) -> str:
        tensors = self.args[0] if isinstance(self.args[0], list) else [a for a in self.args if torch.is_tensor(a)]
        return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)


def declared_inputs(model: nn.Module, built: ZooModel) -> Inputs:
    """What the library made the model for."""
    if built.takes_list:
        return _detection(*built.input_shapes[0][-2:])
    shapes = built.input_shapes or ((1, *declared_size(model)),)
    return _images(shapes)


def small_inputs(model: nn.Module, built: ZooModel) -> Inputs:
    """The smallest square inputs the model runs on in both modes, else in eval mode, else the declared ones."""
    ease_detection(model)
    running: list[Inputs] = []
    for inputs in _by_size(built, square=True):
        if _runs(model, inputs):
            if _trains(model, inputs):
                return inputs
            running.append(inputs)
        if len(running) == TRIALS:
            break
    return running[0] if running else declared_inputs(model, built)


def second_inputs(model: nn.Module, built: ZooModel, first: Inputs) -> Inputs | None:
    """Inputs of another height and width, or None if the model takes one size only."""
    for inputs in (*_by_size(built, square=False, limit=4), *_by_size(built, square=True, limit=5)):
        if str(inputs) != str(first) and _runs(model, inputs):
            return inputs
    return None


def ease_detection(model: nn.Module) -> None:
    """torchvision's detectors resize images to 800, and drop boxes of low score: all, with random weights."""
    for module in (model, getattr(model, "roi_heads", model)):
        if hasattr(module, "score_thresh"):
            module.score_thresh = -1.0
    if hasattr(model, "topk_candidates"):  # one stage: boxes of every level of the pyramid are to be kept
        model.detections_per_img, model.nms_thresh = 10_000, 1.0
    sampler = getattr(getattr(model, "rpn", None), "fg_bg_sampler", None)
    if sampler is not None:  # of two stages: the loss reads 256 anchors drawn by lot, else
        sampler.batch_size_per_image = 100_000
    transform = getattr(model, "transform", None)
    if hasattr(transform, "min_size") and getattr(transform, "fixed_size", None) is None:
        transform.min_size, transform.max_size = (128,), 192


def _by_size(built: ZooModel, *, square: bool, limit: int = 99) -> Iterator[Inputs]:
    largest = max((length for shape in built.input_shapes for length in shape[-2:]), default=224)
    sides = [side for side in SIDES if side <= max(largest, 128)]
    for side in sides[:limit]:
        height, width = (side, side) if square else (side + 64, side)
        if built.takes_list:
            yield _detection(height, width)
        else:
            shapes = built.input_shapes or ((1, 3, largest, largest),)
            yield _images(tuple((*shape[:-2], height, width) for shape in shapes))


def _images(shapes: tuple[tuple[int, ...], ...]) -> Inputs:
    noise = torch.Generator().manual_seed(0)
    return Inputs(tuple(torch.rand(shape, generator=noise) for shape in shapes))


def _detection(height: int, width: int) -> Inputs:
    """Images and, for train mode, boxes of many sizes with every kind of target, so that each level has its loss."""
    noise = torch.Generator().manual_seed(0)
    boxes = [(2.0, 2.0, 2 + share * (width - 4), 2 + share * (height - 4)) for share in BOXES]
    target = {
        "boxes": torch.tensor(boxes),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "masks": torch.ones(len(boxes), height, width, dtype=torch.uint8),
        "keypoints": torch.full((len(boxes), 17, 3), 8.0),
    }
    return Inputs(([torch.rand(3, height, width, generator=noise)], [target]))


def _trains(model: nn.Module, inputs: Inputs) -> bool:
    """Does one forward of a copy in train mode work, on a batch of two where there is a batch?"""
    example = Example(inputs.args, {})
    twin = twin_of(model, to_clone)
    set_mode(twin, training=True)
    return _runs(twin, Inputs((example.with_batch(1) or example).args))


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        with torch.no_grad():
            model(*inputs.args)
    except Exception:
        return False
    return True
