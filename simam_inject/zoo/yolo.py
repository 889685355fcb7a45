"""Models of ultralytics: built from a packaged YAML, or loaded from a checkpoint.

The package is optional (AGPL-3.0), so it is imported only when a model is built.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simam_inject.errors import ModelError
from simam_inject.zoo.names import find_nearest, list_ultralytics, unknown_model
from simam_inject.zoo.records import ZooModel
from simam_inject.zoo.weights import describe_weights, fetching

_INSTALL = 'pip install "simam_inject[ultralytics]"'
_DETECTION_SIZE = 640
_CLASSIFICATION_SIZE = 224


def is_yolo_name(name: str) -> bool:
    """True if the name looks like one of ultralytics', installed or not: `yolov8n`, `rtdetr-l`, any `.pt`."""
    return name.endswith(".pt") or re.match(r"yolo(e-)?v?\d|rtdetr-", name) is not None


def build_ultralytics(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build a `YOLO` (or `RTDETR`) object.

    A name without a suffix is built from its packaged YAML, or, with `pretrained`, loaded from its published
    checkpoint. `NAME.pt` always means a checkpoint: the file, or, where there is none, the published one. A checkpoint
    is a pickle: load one from people you trust.

    Raises:
        ModelError: ultralytics is missing, the name is unknown, or the checkpoint cannot be fetched or read.
    """
    if find_spec("ultralytics") is None:
        raise ModelError(f"{name}: YOLO models need the ultralytics package (AGPL-3.0), which is not here: {_INSTALL}")
    if num_classes is not None:
        raise ModelError(f"{name}: ultralytics takes the number of classes from the data set, when training starts.")
    stem, from_checkpoint = name.removesuffix(".pt"), name.endswith(".pt") or pretrained
    checkpoint = Path(f"{stem}.pt")
    is_file = name.endswith(".pt") and checkpoint.is_file()
    if not is_file:
        _require_known(stem, from_checkpoint=from_checkpoint)
    with fetching(f"ultralytics:{name}", pretrained=from_checkpoint and not is_file):
        model = _load(checkpoint) if from_checkpoint else _construct(stem)
    size = _CLASSIFICATION_SIZE if model.task == "classify" else _DETECTION_SIZE
    note = f"weights of {checkpoint}" if is_file else describe_weights("ultralytics", pretrained=from_checkpoint)
    return ZooModel(name=name, model=model, source="ultralytics", note=note, input_shapes=((1, 3, size, size),))


def _require_known(stem: str, *, from_checkpoint: bool) -> None:
    if not from_checkpoint:
        if stem not in list_ultralytics():
            raise unknown_model(stem, list_ultralytics(), library="ultralytics")
        return
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    published = tuple(asset for asset in GITHUB_ASSETS_NAMES if asset.endswith(".pt"))
    if f"{stem}.pt" not in published:
        near = find_nearest(f"{stem}.pt", published)
        advice = f" Did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"{stem}.pt is no file here, and ultralytics publishes no checkpoint of that name.{advice}")


def _load(checkpoint: Path) -> Any:
    from ultralytics import YOLO

    return YOLO(str(checkpoint))  # it turns into RTDETR, YOLOWorld or YOLOE by itself, by what the checkpoint holds


def _construct(stem: str) -> Any:
    """A model with random weights. ultralytics finds the packaged YAML and the scale by the name alone."""
    from ultralytics import RTDETR, YOLO

    # Only a checkpoint tells `YOLO` that it is an RT-DETR; built from a YAML it has no task for it (ultralytics 8.4).
    return (RTDETR if "rtdetr" in stem else YOLO)(f"{stem}.yaml")
