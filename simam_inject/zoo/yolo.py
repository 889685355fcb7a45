"""Models of ultralytics: built from a packaged YAML, or loaded from a checkpoint.

The package is optional (AGPL-3.0), so it is imported only when a model is built.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simam_inject.errors import ModelError, describe_exception
from simam_inject.zoo.names import list_ultralytics, unknown_model
from simam_inject.zoo.records import ZooModel, describe_weights, fetching


def check_installed(name: str) -> None:
    """Raise if ultralytics is missing, which the model or checkpoint of this name needs."""
    if find_spec("ultralytics") is None:
        raise ModelError(
            f"{name}: YOLO models need the ultralytics package (AGPL-3.0), which is not installed: "
            'pip install "simam_inject[ultralytics]"'
        )


def build_ultralytics(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build a `YOLO` (or `RTDETR`) object.

    A name without a suffix, or with `.yaml`, is built from its packaged YAML, or, with `pretrained`, loaded from its
    published checkpoint. `NAME.pt` is a checkpoint: the file, or, where there is none, the published one. A checkpoint
    is a pickle: load one from people you trust. `FILE.yaml` that exists is the user's own model file.

    Raises:
        ModelError: ultralytics is missing, the name is unknown, or the file cannot be fetched or read.
    """
    check_installed(name)
    from simam_inject.dataflow.example import declared_size

    stem = re.sub(r"\.(pt|ya?ml)$", "", name)
    if pretrained or name.endswith(".pt"):
        if num_classes is not None:
            raise ModelError(
                f"{name}: the number of classes of a checkpoint changes with the data set, when training starts."
            )
        model, note = _load(name, f"{stem}.pt")
        size = declared_size(model.model)
    else:
        model, note = _construct(name, stem, num_classes), describe_weights("ultralytics", pretrained=False)
        size = (3, 224, 224) if model.task == "classify" else declared_size(model.model)
    return ZooModel(name=name, model=model, source="ultralytics", note=note, input_shapes=((1, *size),))


def _load(name: str, checkpoint: str) -> tuple[Any, str]:
    """An existing checkpoint, or the one that ultralytics publishes, with a note on its weights."""
    from ultralytics import YOLO
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    from simam_inject.recipe.wording import nearest

    is_file = name == checkpoint and Path(name).is_file()
    if _is_model_file(name):
        raise ModelError(f"{name}: a model file of your own has no published weights.")
    if not is_file and checkpoint not in GITHUB_ASSETS_NAMES:
        near = nearest(checkpoint, (asset for asset in GITHUB_ASSETS_NAMES if asset.endswith(".pt")))
        advice = f" Did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"no such file: {checkpoint}, and ultralytics publishes no checkpoint of that name.{advice}")
    with fetching(f"ultralytics:{name}", pretrained=not is_file):
        model = YOLO(checkpoint)  # becomes an RTDETR, YOLOWorld or YOLOE if the checkpoint is one of these
    return model, f"weights of {checkpoint}" if is_file else describe_weights("ultralytics", pretrained=True)


def _construct(name: str, stem: str, num_classes: int | None) -> Any:
    """A model with random weights. ultralytics finds a packaged YAML and the scale by the name alone."""
    from ultralytics import RTDETR, YOLO

    is_rtdetr, file = "rtdetr" in name, f"{stem}.yaml"
    if _is_model_file(name):
        file, text = name, Path(name).read_text(encoding="utf-8", errors="replace")
        _check_model_file(name, text)
        is_rtdetr = is_rtdetr or "RTDETRDecoder" in text
    elif stem not in list_ultralytics():
        raise unknown_model(stem, "ultralytics")
    with fetching(f"ultralytics:{name}", pretrained=False):
        # Only a checkpoint makes `YOLO` an RT-DETR; built from a YAML it has no task for it (ultralytics 8.4).
        model = (RTDETR if is_rtdetr else YOLO)(file)
        if num_classes is not None:
            network = model.model
            model.model = type(network)(network.yaml, nc=num_classes, verbose=False)
            for key in ("args", "task"):
                setattr(model.model, key, getattr(network, key))
    return model


def _is_model_file(name: str) -> bool:
    """A YAML file of the user's own."""
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _check_model_file(name: str, text: str) -> None:
    """Refuse a recipe, and a model file with SimAM rows, with what to do instead."""
    import yaml

    try:
        table = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ModelError(f"{name} cannot be read as YAML: {describe_exception(error)}.") from None
    found = table if isinstance(table, dict) else {}
    if "rules" in found:
        raise ModelError(f"{name} is a recipe, not a model: give the model and add --recipe {name}.")
    if "simam" in str([found.get("backbone"), found.get("head")]).lower():
        raise ModelError(
            f"{name} contains SimAM, which ultralytics does not have: convert it with simam-inject recipes "
            f"from-yaml {name} --output recipe.yaml, and use the original model with --recipe recipe.yaml."
        )
