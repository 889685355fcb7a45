"""From a name to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from simam_inject.errors import ModelError
from simam_inject.zoo.factories import build_factory
from simam_inject.zoo.libraries import build_timm, build_torchvision
from simam_inject.zoo.names import find_library, list_timm
from simam_inject.zoo.records import ZooModel
from simam_inject.zoo.yolo import build_ultralytics

_BUILDERS: dict[str, Callable[..., ZooModel]] = {
    "": build_factory,
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
    library = find_library(name)
    own_name = name.removeprefix(f"{library}:")
    built = _BUILDERS[library](own_name, pretrained=pretrained, num_classes=num_classes)
    if library == "torchvision" and own_name == name and name in list_timm():
        built = replace(built, note=f"{built.note}; {name} is torchvision's, timm has its own: timm:{name}")
    return replace(built, name=name)
