"""From a name to a model."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from simam_inject.errors import ModelError, describe_exception
from simam_inject.zoo.factories import build_factory
from simam_inject.zoo.model import ZooModel
from simam_inject.zoo.names import find_library, list_registered
from simam_inject.zoo.yolo import build_ultralytics

_FRAMES = 16
_FLOW_SIZE = 128
"""The smallest size of images that torchvision's RAFT takes."""


def build(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build the model that `name` means; a new object at every call.

    Args:
        name: `NAME` (torchvision first, then timm, then ultralytics), `torchvision:NAME`, `timm:NAME`,
            `ultralytics:NAME`, an ultralytics `FILE.pt` or `FILE.yaml`, `FILE.py:FACTORY` or `PACKAGE.MODULE:FACTORY`.
        pretrained: Load the weights that the library publishes instead of random ones.
        num_classes: Number of classes of the head; the library's own default otherwise. 0 for timm: no head.

    Returns:
        The model with the name of its library, its input shapes, and a note on its weights and on any other model of
        the same name.

    Raises:
        ModelError: The name is unknown, a package is missing, or the weights cannot be fetched.

    Example:
        >>> build("resnet18", num_classes=10).input_shapes
        ((1, 3, 224, 224),)
    """
    library = find_library(name)
    least = 0 if library == "timm" else 1
    if num_classes is not None and num_classes < least:
        raise ModelError(f"num_classes is {num_classes}; it must be at least {least}")
    options = {} if num_classes is None else {"num_classes": num_classes}
    if not library:
        return build_factory(name, {"pretrained": True, **options} if pretrained else options)
    builders = {"torchvision": _build_torchvision, "timm": _build_timm, "ultralytics": build_ultralytics}
    own_name = name.removeprefix(f"{library}:")
    fetched = pretrained or (own_name.endswith(".pt") and not Path(own_name).is_file())
    try:
        built = builders[library](own_name, options, pretrained=pretrained)
    except ModelError:
        raise
    except Exception as error:  # each library lets the exceptions of its own download client through
        problem = f"{library}:{own_name}: cannot {'load the pretrained weights' if fetched else 'build the model'}"
        advice = "; without `pretrained` the weights are random" * pretrained
        raise ModelError(f"{problem}: {describe_exception(error)}{advice}") from error
    note = built.note or (f"{library}'s pretrained weights" if pretrained else "random weights")
    if library == "torchvision" and own_name == name and name in list_registered("timm"):
        note += f"; {name} is torchvision's, timm has its own: timm:{name}"
    return replace(built, name=name, note=note)


def _build_torchvision(name: str, options: dict[str, Any], *, pretrained: bool) -> ZooModel:
    """A model of any kind with random or its best published weights, and the input size of its published weights."""
    from torchvision import models

    builder = models.get_model_builder(name)
    options = {"weights": "DEFAULT" if pretrained else None, **options}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if not pretrained and builder.__module__.endswith((".googlenet", ".inception")):
        options["init_weights"] = True  # without it these two warn (torchvision 0.29)
    kind = builder.__module__.split(".")[2]
    heads = set[str]()
    if pretrained and "num_classes" in options and kind not in ("detection", "segmentation"):
        other = builder(**{**options, "weights": None})  # torchvision refuses other classes than those of its weights
        del options["num_classes"]
        model, shapes = builder(**options), {name: value.shape for name, value in other.state_dict().items()}
        heads = {name.rpartition(".")[0] for name, value in model.state_dict().items() if value.shape != shapes[name]}
        for head in heads:
            model.set_submodule(head, other.get_submodule(head))
    else:
        model = builder(**options)
    transform: Any = models.get_model_weights(name)["DEFAULT"].transforms()
    if kind == "detection":  # it normalizes and resizes images by itself
        size = model.transform.fixed_size or (min(model.transform.min_size),) * 2
        return ZooModel(name, model, "torchvision", "", ((3, *size),), takes_list=True)
    if kind == "optical_flow":
        return ZooModel(name, model, "torchvision", "", ((1, 3, _FLOW_SIZE, _FLOW_SIZE),) * 2)
    if hasattr(model, "image_size"):  # a ViT's positions are made for one size, and its best weights may have another
        size = [model.image_size]
    else:
        size = transform.resize_size if kind == "segmentation" else transform.crop_size
    frames = (_FRAMES,) if kind == "video" else ()
    shape = (1, 3, *frames, *(size if len(size) == 2 else (*size, *size)))
    note = f"torchvision's pretrained weights, with a new {' and '.join(sorted(heads))}" if heads else ""
    return ZooModel(
        name, model, "torchvision", note, (shape,), normalization=(tuple(transform.mean), tuple(transform.std))
    )


def _build_timm(name: str, options: dict[str, Any], *, pretrained: bool) -> ZooModel:
    """A model of timm; a tag (`resnet50.a1_in1k`) chooses among its published weights."""
    import timm

    from simam_inject.dataflow.example import declared_size

    model = timm.create_model(name, pretrained=pretrained, **options)
    config = getattr(model, "pretrained_cfg", {})
    mean, deviation = config.get("mean"), config.get("std")
    normalization = (tuple(mean), tuple(deviation)) if mean and deviation else None
    return ZooModel(name, model, "timm", "", ((1, *declared_size(model)),), normalization=normalization)
