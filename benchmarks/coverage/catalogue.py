"""Which models there are, and how each is built: for real, or on the meta device where only structure is asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from benchmarks.coverage import public_styles, second_ring
from benchmarks.coverage.records import Entry
from simam_inject.adapters import network_of
from simam_inject.zoo import ZooModel, build
from simam_inject.zoo.names import list_registered

SECOND_RING = "second-ring"
PUBLIC_STYLES = "public-styles"
LIBRARIES = ("torchvision", "timm", "ultralytics", SECOND_RING, PUBLIC_STYLES)


def import_libraries() -> None:
    """Import everything that the models need, so that forked workers find it done."""
    import timm
    import torchvision
    import ultralytics
    import ultralytics.nn.tasks

    assert timm
    assert torchvision
    assert ultralytics
    for package in second_ring.PACKAGES if second_ring.is_installed() else ():
        importlib.import_module(package)


def list_names(library: str) -> tuple[str, ...]:
    """All models of a library: builders, architectures, or packaged YAML files."""
    if library == "torchvision":
        return list_registered("torchvision")
    if library == "timm":
        return list_registered("timm")
    if library == SECOND_RING:
        return tuple(second_ring.MODELS)
    if library == PUBLIC_STYLES:
        return public_styles.list_nets()
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    return tuple(sorted({path.stem for path in folder.rglob("*.yaml")}))


def build_model(library: str, name: str) -> tuple[nn.Module, ZooModel]:
    """The network, with random weights, and what the zoo says about it. Nothing is printed."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        ring = {SECOND_RING: second_ring, PUBLIC_STYLES: public_styles}.get(library)
        built = build(f"{library}:{name}") if ring is None else ring.build(name)
        return network_of(built.model).eval(), built


def build_light(library: str, name: str) -> tuple[nn.Module, ZooModel]:
    """The same with tensors that were never written: built on the meta device, which costs no time and no memory."""
    with torch.device("meta"):
        model, built = build_model(library, name)
    return model.to_empty(device="cpu"), built


def take_stock(library: str, name: str) -> Entry:
    """The inventory's line about a model."""
    try:
        with torch.device("meta"):
            model, _ = build_model(library, name)
    except Exception:  # asks for values while it is built: `linspace(...).item()`
        try:
            model, _ = build_model(library, name)
        except Exception as error:
            return Entry(library, name, family_of(library, name), error=f"{type(error).__name__}: {error}"[:300])
    return Entry(
        library=library,
        name=name,
        family=family_of(library, name),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        classes=tuple(sorted({type(module).__qualname__ for module in model.modules() if any(module.children())})),
        convolutions=sum(makes_map(module) for module in model.modules()),
    )


def makes_map(module: nn.Module) -> bool:
    """A convolution whose patches overlap, which a patch embedding's do not."""
    if not isinstance(module, _ConvNd):
        return False
    stride = (module.stride,) if isinstance(module.stride, int) else module.stride  # a list, in smp's encoders
    return any(length > step for length, step in zip(module.kernel_size, stride, strict=True))


def family_of(library: str, name: str) -> str:
    """The module that defines the model; for ultralytics the folder of its YAML; of the second ring the package."""
    if library in (SECOND_RING, PUBLIC_STYLES):
        return name.partition("-")[0]
    if library == "torchvision":
        from torchvision import models

        return models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
    if library == "timm":
        import timm

        return timm.model_entrypoint(name).__module__.rpartition(".")[2]
    ultralytics = sys.modules["ultralytics"]
    folder = Path(str(ultralytics.__file__)).parent / "cfg" / "models"
    return next((path.parent.name for path in folder.rglob(f"{name}.yaml")), "")
