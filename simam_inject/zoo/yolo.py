"""Models of ultralytics: built from a packaged YAML, or loaded from a checkpoint.

The package is optional (AGPL-3.0), so it is imported only when a model is built.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simam_inject.errors import ModelError, describe_exception
from simam_inject.zoo.names import find_nearest, list_ultralytics, unknown_model
from simam_inject.zoo.records import ZooModel, describe_weights, fetching

_INSTALL = 'pip install "simam_inject[ultralytics]"'
_YAML = (".yaml", ".yml")
_DETECTION_SIZE = 640
_CLASSIFICATION_SIZE = 224


def is_yolo_name(name: str) -> bool:
    """True if the name looks like one of ultralytics': `yolov8n`, `rtdetr-l`, any `.pt` or `.yaml`."""
    return name.endswith((".pt", *_YAML)) or re.match(r"yolo(e-)?v?\d|rtdetr-", name) is not None


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
    own, stem = name.endswith(_YAML) and Path(name).is_file(), re.sub(r"\.(pt|ya?ml)$", "", name)
    if own and pretrained:
        raise ModelError(f"{name}: a model file of your own has no published weights.")
    if name.endswith(".pt") or pretrained:
        if num_classes is not None:
            raise ModelError(
                f"{name}: the number of classes of a checkpoint changes with the data set, when training starts."
            )
        return _load(name, f"{stem}.pt")
    if own:
        _check_model_file(Path(name))
    elif stem not in list_ultralytics():
        raise unknown_model(stem, list_ultralytics(), library="ultralytics")
    with fetching(f"ultralytics:{name}", pretrained=False):
        model = _construct(name if own else f"{stem}.yaml", num_classes)
    return _record(name, model, describe_weights("ultralytics", pretrained=False))


def _record(name: str, model: Any, note: str) -> ZooModel:
    size = _CLASSIFICATION_SIZE if model.task == "classify" else _DETECTION_SIZE
    return ZooModel(name=name, model=model, source="ultralytics", note=note, input_shapes=((1, 3, size, size),))


def _check_model_file(path: Path) -> None:
    """Refuse a YAML that is not a model file; a recipe is answered with how to use it."""
    from simam_inject.recipe.texts import read_yaml

    try:
        data = read_yaml(path.read_bytes())
    except Exception as error:
        raise ModelError(f"{path} cannot be read as YAML: {describe_exception(error)}.") from None
    if isinstance(data, dict) and "backbone" in data:
        if "simam" in str([data["backbone"], data.get("head")]).lower():
            raise ModelError(
                f"{path} contains SimAM, which ultralytics does not have: convert it with simam-inject recipes "
                f"from-yaml {path} --output recipe.yaml, and use the original model with --recipe recipe.yaml."
            )
        return
    if isinstance(data, dict) and "rules" in data:
        raise ModelError(f"{path} is a recipe, not a model: give the model and add --recipe {path}.")
    raise ModelError(f"{path} is not a model file of ultralytics: it has no backbone.")


def _load(name: str, checkpoint: str) -> ZooModel:
    """A file, if the name says so and it is there, or what ultralytics publishes."""
    from ultralytics import YOLO
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    is_file, published = name == checkpoint and Path(name).is_file(), tuple(GITHUB_ASSETS_NAMES)
    if not is_file and checkpoint not in published:
        near = find_nearest(checkpoint, (asset for asset in published if asset.endswith(".pt")))
        advice = f" Did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"no such file: {checkpoint}, and ultralytics publishes no checkpoint of that name.{advice}")
    with fetching(f"ultralytics:{name}", pretrained=not is_file):
        model = YOLO(checkpoint)  # it turns into RTDETR, YOLOWorld or YOLOE by itself, by what the checkpoint holds
    note = f"weights of {checkpoint}" if is_file else describe_weights("ultralytics", pretrained=True)
    return _record(name, model, note)


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
