"""One name in, one model out: who answers for a name, and what is told when more than one could."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from simam_inject.errors import ModelError
from simam_inject.zoo.factories import build_factory
from simam_inject.zoo.libraries import build_timm, build_torchvision, is_timm_name, is_torchvision_name
from simam_inject.zoo.names import FORMS, list_timm, list_torchvision, list_ultralytics, unknown_model
from simam_inject.zoo.records import ZooModel
from simam_inject.zoo.yolo import build_ultralytics, is_yolo_name

_BUILDERS: dict[str, Callable[..., ZooModel]] = {
    "timm": build_timm,
    "torchvision": build_torchvision,
    "ultralytics": build_ultralytics,
}


def build(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build the model that `name` means; a new object at every call.

    Args:
        name: `NAME` (torchvision first, then timm, then ultralytics), `torchvision:NAME`, `timm:NAME`,
            `ultralytics:NAME`, an ultralytics checkpoint `FILE.pt`, `FILE.py:FACTORY` or `PACKAGE.MODULE:FACTORY`.
        pretrained: Load the weights that the library publishes instead of random ones.
        num_classes: Number of classes, where the model has such a thing; its own default otherwise.

    Returns:
        The model with the name of its library, its input shapes, and a note on its weights and on any other model of
        the same name.

    Raises:
        ModelError: The name is unknown, a package is missing, or the weights cannot be fetched.
    """
    if num_classes is not None and num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}; it must be at least 1.")
    prefix, colon, rest = name.partition(":")
    if prefix in _BUILDERS and colon:
        built = _BUILDERS[prefix](rest, pretrained=pretrained, num_classes=num_classes)
        return replace(built, name=name)
    if colon:
        return build_factory(name, pretrained=pretrained, num_classes=num_classes)
    library = _find_library(name)
    built = _BUILDERS[library](name, pretrained=pretrained, num_classes=num_classes)
    if library == "torchvision" and is_timm_name(name):
        return replace(built, note=f"{built.note}; {name} is torchvision's, timm has its own: timm:{name}")
    return built


def _find_library(name: str) -> str:
    """The first library that answers for a plain name."""
    if name.endswith(".py"):
        raise ModelError(f"{name}: which model of that file? Name its factory: {name}:FACTORY.")
    if is_yolo_name(name):
        if name.endswith(".pt") or name in list_ultralytics() or not list_ultralytics():
            return "ultralytics"
    elif is_torchvision_name(name):
        return "torchvision"
    elif is_timm_name(name):
        return "timm"
    if not name.strip():
        raise ModelError(f"The model has no name. A model is named {FORMS}.")
    raise unknown_model(name, _list_everything())


def _list_everything() -> list[str]:
    """Every name of every library, in the form that reaches it: plain where the plain name does."""
    torchvision, timm = list_torchvision(), list_timm()
    plain = set(torchvision)
    return [*torchvision, *(f"timm:{name}" if name in plain else name for name in timm), *list_ultralytics()]
