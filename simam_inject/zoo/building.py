"""From a name to a model: which library has the name, and what the note says when more than one has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from simam_inject.errors import ModelError
from simam_inject.zoo.factories import build_factory, which_factory
from simam_inject.zoo.libraries import build_timm, build_torchvision
from simam_inject.zoo.names import (
    FORMS,
    is_defined_in_timm,
    list_timm,
    list_torchvision,
    list_ultralytics,
    unknown_model,
)
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
            `ultralytics:NAME`, an ultralytics `FILE.pt` or `FILE.yaml`, `FILE.py:FACTORY` or `PACKAGE.MODULE:FACTORY`.
        pretrained: Load the weights that the library publishes instead of random ones.
        num_classes: Number of classes of the head; the library's own default otherwise.

    Returns:
        The model with the name of its library, its input shapes, and a note on its weights and on any other model of
        the same name.

    Raises:
        ModelError: The name is unknown, a package is missing, or the weights cannot be fetched.
    """
    if num_classes is not None and num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}; it must be at least 1.")
    prefix, colon, rest = name.rpartition(":")
    if colon and prefix not in _BUILDERS:
        return build_factory(name, pretrained=pretrained, num_classes=num_classes)
    library = prefix or _find_library(name)
    built = _BUILDERS[library](rest, pretrained=pretrained, num_classes=num_classes)
    if library == "torchvision" and not prefix and is_defined_in_timm(name):
        built = replace(built, note=f"{built.note}; {name} is torchvision's, timm has its own: timm:{name}")
    return replace(built, name=name)


def _find_library(name: str) -> str:
    """The first library that has a plain name."""
    if name.endswith(".py"):
        raise which_factory(name)
    if is_yolo_name(name):
        if name.endswith((".pt", ".yaml", ".yml")) or name in list_ultralytics() or not list_ultralytics():
            return "ultralytics"
    elif name in list_torchvision():
        return "torchvision"
    elif _is_timm_name(name):
        return "timm"
    if not name.strip():
        raise ModelError(f"The model has no name. A model is named {FORMS}.")
    plain = set(list_torchvision())  # a name of both libraries means torchvision's
    timm = [f"timm:{other}" if other in plain else other for other in list_timm()]
    raise unknown_model(name, [*list_torchvision(), *timm, *list_ultralytics()])


def _is_timm_name(name: str) -> bool:
    import timm

    return bool(timm.is_model(name))  # whatever the tag
