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
from simam_inject.zoo.records import ZooModel, describe_weights, fetching

_INSTALL = 'pip install "simam_inject[ultralytics]"'
_DETECTION_SIZE = 640
_CLASSIFICATION_SIZE = 224


def build_ultralytics(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build a `YOLO` (or `RTDETR`) object.

    A name without a suffix, or with `.yaml`, is built from its packaged YAML, or, with `pretrained`, loaded from its
    published checkpoint. `NAME.pt` is a checkpoint: the file, or, where there is none, the published one. A checkpoint
    is a pickle: load one from people you trust. `FILE.yaml` that exists is the user's own model file.

    Raises:
        ModelError: ultralytics is missing, the name is unknown, or the file cannot be fetched or read.
    """
    if find_spec("ultralytics") is None:
        raise ModelError(
            f"{name}: YOLO models need the ultralytics package (AGPL-3.0), which is not installed: {_INSTALL}"
        )
    is_own, stem = name.endswith((".yaml", ".yml")) and Path(name).is_file(), re.sub(r"\.(pt|ya?ml)$", "", name)
    is_file, is_checkpoint = is_own or Path(name).is_file(), pretrained or name.endswith(".pt")
    if is_own and pretrained:
        raise ModelError(f"{name}: a model file of your own has no published weights.")
    if is_checkpoint and num_classes is not None:
        raise ModelError(
            f"{name}: the number of classes of a checkpoint changes with the data set, when training starts."
        )
    if is_own:
        _check_model_file(Path(name))
    elif is_checkpoint and not is_file:
        _check_published(f"{stem}.pt")
    elif not is_checkpoint and stem not in list_ultralytics():
        raise unknown_model(stem, list_ultralytics(), library="ultralytics")
    with fetching(f"ultralytics:{name}", pretrained=is_checkpoint and not is_file):
        model = _load(f"{stem}.pt") if is_checkpoint else _construct(name if is_own else f"{stem}.yaml", num_classes)
    size = _CLASSIFICATION_SIZE if model.task == "classify" else _DETECTION_SIZE
    weights = f"weights of {name}" if is_checkpoint and is_file else ""
    note = weights or describe_weights("ultralytics", pretrained=is_checkpoint)
    return ZooModel(name=name, model=model, source="ultralytics", note=note, input_shapes=((1, 3, size, size),))


def _check_model_file(path: Path) -> None:
    """Refuse a YAML with SimAM in it, and a recipe, with what to do instead."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if re.search("^rules:", text, re.MULTILINE):
        raise ModelError(f"{path} is a recipe, not a model: give the model and add --recipe {path}.")
    if "simam" in text.lower():
        raise ModelError(
            f"{path} contains SimAM, which ultralytics does not have: convert it with simam-inject recipes "
            f"from-yaml {path} --output recipe.yaml, and use the original model with --recipe recipe.yaml."
        )


def _check_published(checkpoint: str) -> None:
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    if checkpoint not in GITHUB_ASSETS_NAMES:
        near = find_nearest(checkpoint, (asset for asset in GITHUB_ASSETS_NAMES if asset.endswith(".pt")))
        advice = f" Did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"no such file: {checkpoint}, and ultralytics publishes no checkpoint of that name.{advice}")


def _load(checkpoint: str) -> Any:
    from ultralytics import YOLO

    return YOLO(checkpoint)  # it turns into RTDETR, YOLOWorld or YOLOE by itself, by what the checkpoint holds


def _construct(file: str, num_classes: int | None) -> Any:
    """A model with random weights. ultralytics finds a packaged YAML and the scale by the name alone."""
    from ultralytics import RTDETR, YOLO

    # Only a checkpoint makes `YOLO` an RT-DETR; built from a YAML it has no task for it (ultralytics 8.4).
    is_rtdetr = "rtdetr" in file or (Path(file).is_file() and "RTDETRDecoder" in Path(file).read_text(encoding="utf-8"))
    model = (RTDETR if is_rtdetr else YOLO)(file)
    if num_classes is not None:
        network = model.model
        model.model = type(network)(network.yaml, nc=num_classes, verbose=False)
        for key in ("args", "task"):
            setattr(model.model, key, getattr(network, key))
    return model
