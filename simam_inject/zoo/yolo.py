"""Models of ultralytics: built from a YAML, or loaded from a checkpoint.

The package is optional (AGPL-3.0), so it is imported only when a model is built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from simam_inject.errors import FileError, InjectError, ModelError, check_installed, describe_exception, did_you_mean
from simam_inject.zoo.model import ZooModel
from simam_inject.zoo.names import list_ultralytics, unknown_model


def check_ultralytics(name: str) -> None:
    """Raise if ultralytics is missing, which the model or checkpoint of this name needs."""
    check_installed(f"{name}: a YOLO model (AGPL-3.0)", "ultralytics", "ultralytics")


def build_ultralytics(name: str, options: dict[str, Any], *, pretrained: bool) -> ZooModel:
    """Build a `YOLO` (or `RTDETR`) object.

    A name without a suffix, or with `.yaml`, is built from its packaged YAML, or, with `pretrained`, loaded from its
    published checkpoint. `NAME.pt` is a checkpoint: the file, or, where there is none, the published one. A checkpoint
    is a pickle: load one from people you trust. `FILE.yaml` that exists is the user's own model file.

    Raises:
        ModelError: ultralytics is missing, it has no such model, or the file is not one of its model files.
    """
    from simam_inject.dataflow.example import declared_size

    check_ultralytics(name)
    stem = re.sub(r"\.(pt|ya?ml)$", "", name)
    is_own = name != stem and not name.endswith(".pt") and Path(name).is_file()
    if not (pretrained or name.endswith(".pt")):
        model, note = _construct(name if is_own else stem, options), "random weights"
    elif options:
        raise ModelError(f"{name}: the number of classes of a checkpoint changes with the data set, in training")
    elif is_own:
        raise ModelError(f"{name}: a model file of your own has no published weights")
    else:
        model, note = _load(f"{stem}.pt")
    return ZooModel(name, model, "ultralytics", note, ((1, *declared_size(model.model)),))


def read_yolo(file: Path) -> Any:
    """The `YOLO` object of a checkpoint, which is a pickle.

    Raises:
        FileError: the file does not exist, is not a `.pt` file, or ultralytics cannot load it.
    """
    from ultralytics import YOLO

    if not file.is_file():
        raise FileError(f"no such file: {str(file)!r}")
    if file.suffix != ".pt":  # ultralytics takes the name of any other file for that of an exported network
        raise FileError(f"{file} is not a checkpoint of ultralytics, whose name ends in .pt")
    try:
        return YOLO(str(file))
    except InjectError:
        raise
    except Exception as error:  # unpickling a file may raise anything
        raise FileError(f"ultralytics cannot load {file}: {describe_exception(error)}") from error


def _load(checkpoint: str) -> tuple[Any, str]:
    """An existing checkpoint, or the one that ultralytics publishes, with a note on its weights."""
    from ultralytics import YOLO
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    is_file = Path(checkpoint).is_file()
    if not is_file and checkpoint not in GITHUB_ASSETS_NAMES:
        advice = did_you_mean(checkpoint, (asset for asset in GITHUB_ASSETS_NAMES if asset.endswith(".pt")))
        raise ModelError(f"no such file: {checkpoint}, and ultralytics publishes no checkpoint of that name{advice}")
    model = YOLO(checkpoint)  # becomes an RTDETR, YOLOWorld or YOLOE if the checkpoint is one of these
    return model, f"weights of {checkpoint}" if is_file else "pretrained weights of ultralytics"


def _construct(name: str, options: dict[str, Any]) -> Any:
    """A model with random weights, from a file or a packaged YAML, whose scale is in the name."""
    from ultralytics import RTDETR, YOLO

    import simam_inject.integrations.ultralytics  # noqa: F401  for a section `simam` in the file

    is_rtdetr = "rtdetr" in name
    if name.endswith((".yaml", ".yml")):
        text = Path(name).read_text(encoding="utf-8", errors="replace")
        _check_model_file(name, text)
        is_rtdetr = is_rtdetr or "RTDETRDecoder" in text
    elif name in list_ultralytics():
        name = f"{name}.yaml"
    else:
        raise unknown_model(name, "ultralytics")
    # Only a checkpoint makes `YOLO` an RT-DETR; built from a YAML it has no task for it (ultralytics 8.4).
    model = (RTDETR if is_rtdetr else YOLO)(name)
    if options:
        network = model.model
        model.model = type(network)(network.yaml, nc=options["num_classes"], verbose=False)
        model.model.args, model.model.task = network.args, network.task
    return model


def _check_model_file(name: str, text: str) -> None:
    """Refuse a recipe, and a model file with SimAM rows, with what to do instead."""
    import yaml

    try:
        table = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ModelError(f"{name} cannot be read as YAML: {describe_exception(error)}") from None
    found = table if isinstance(table, dict) else {}
    if "rules" in found:
        raise ModelError(f"{name} is a recipe, not a model: give the model and add --recipe {name}")
    if "simam" in str([found.get("backbone"), found.get("head")]).lower():
        raise ModelError(
            f"{name} contains SimAM, which ultralytics does not have: convert it with simam-inject recipes "
            f"from-yaml {name} --output recipe.yaml, and use the original model with --recipe recipe.yaml"
        )
