"""Models of torchvision and timm, by the name their library registers."""

from __future__ import annotations

import inspect
from typing import Any

from simam_inject.zoo.records import ZooModel, describe_weights, fetching

_SEGMENTATION_SIZE = 520
_FLOW_SIZE = 128
_FRAMES = 16
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build_torchvision(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build a torchvision model of any kind with random or its best published weights.

    Raises:
        ModelError: The weights cannot be fetched, or the builder refuses `num_classes`.
    """
    from torchvision import models

    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if not pretrained and builder.__module__.endswith((".googlenet", ".inception")):
        options["init_weights"] = True  # without it these two warn (torchvision 0.29)
    if num_classes is not None:
        options["num_classes"] = num_classes
    with fetching(f"torchvision:{name}", pretrained=pretrained):
        model = builder(**options)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    return ZooModel(
        name=name,
        model=model,
        source="torchvision",
        note=describe_weights("torchvision", pretrained=pretrained),
        input_shapes=_torchvision_inputs(name, kind, model),
        takes_list=kind == "detection",
        normalization=None if kind in ("detection", "optical_flow") else _IMAGENET,
    )


def _torchvision_inputs(name: str, kind: str, model: Any) -> tuple[tuple[int, ...], ...]:
    """Input shapes: what the published weights were evaluated at, or what the model resizes to by itself."""
    from torchvision import models

    if kind == "detection":
        resize = model.transform
        return ((3, *(resize.fixed_size or (min(resize.min_size),) * 2)),)
    if kind == "optical_flow":
        return ((1, 3, _FLOW_SIZE, _FLOW_SIZE),) * 2
    if kind == "segmentation":
        return ((1, 3, _SEGMENTATION_SIZE, _SEGMENTATION_SIZE),)
    if hasattr(model, "image_size"):  # a ViT's positions are made for one size, and its best weights may have another
        return ((1, 3, model.image_size, model.image_size),)
    crop = tuple(models.get_model_weights(name).DEFAULT.transforms().crop_size)
    size = crop if len(crop) == 2 else crop * 2
    return ((1, 3, _FRAMES, *size) if kind == "video" else (1, 3, *size),)


def build_timm(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build a timm model; a tag (`resnet50.a1_in1k`) chooses among its published weights.

    Raises:
        ModelError: The tag is unknown, or the weights cannot be fetched.
    """
    import timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    with fetching(f"timm:{name}", pretrained=pretrained):
        model = timm.create_model(name, pretrained=pretrained, **options)
    config = getattr(model, "pretrained_cfg", {})
    size, mean, deviation = (config.get(key) for key in ("input_size", "mean", "std"))
    return ZooModel(
        name=name,
        model=model,
        source="timm",
        note=describe_weights("timm", pretrained=pretrained),
        input_shapes=((1, *size),) if size else (),
        normalization=(tuple(mean), tuple(deviation)) if mean and deviation else None,
    )
