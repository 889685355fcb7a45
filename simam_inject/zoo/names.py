"""Names of models, and suggestions for a wrong one. Read from the libraries' source: importing them takes seconds."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from simam_inject.errors import ModelError
from simam_inject.zoo.factories import which_factory

FORMS = (
    "NAME, torchvision:NAME, timm:NAME, ultralytics:NAME, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, FILE.pt or FILE.yaml"
)
"""How a model may be named, for error messages."""
_REGISTERED = re.compile(r'^@register_model(?:\((?:name="(\w+)")?\))?\n(?:(?!def )[^\n]+\n)*def (\w+)', re.MULTILINE)


def find_library(name: str) -> str:
    """The library that a name means: `torchvision`, `timm`, `ultralytics`, or "" for a factory.

    Raises:
        ModelError: no library has the name.
    """
    prefix, colon, bare = name.rpartition(":")
    if colon and prefix not in ("torchvision", "timm", "ultralytics"):
        return ""
    if name.endswith(".py"):
        raise which_factory(name)
    if prefix in ("", "torchvision") and bare in list_torchvision():
        return "torchvision"
    if prefix in ("", "timm") and bare.partition(".")[0] in list_timm():
        return "timm"
    if prefix in ("", "ultralytics") and _may_be_ultralytics(bare, prefix):
        return "ultralytics"
    if not name.strip():
        raise ModelError(f"The model has no name. A model is named {FORMS}.")
    raise unknown_model(bare, prefix)


def _may_be_ultralytics(name: str, prefix: str) -> bool:
    """Whether ultralytics has the name, or building it says what is wrong with a file or with the installation."""
    if name.endswith((".pt", ".yaml", ".yml")) or name in list_ultralytics():
        return True
    return not list_ultralytics() and (bool(prefix) or re.match(r"yolo(e-)?v?\d|rtdetr-", name) is not None)


@cache
def list_torchvision() -> tuple[str, ...]:
    """Names of torchvision's model builders."""
    return _read_registry("torchvision")


@cache
def list_timm() -> tuple[str, ...]:
    """Names of timm's architectures, without tags."""
    return _read_registry("timm")


@cache
def list_ultralytics() -> tuple[str, ...]:
    """Names of the models ultralytics packages a YAML for, in every scale; empty if it is not installed."""
    names: list[str] = []
    for file in _files("ultralytics", "cfg/models", "*.yaml"):
        names.append(file.stem)
        scales = re.findall(r"^  ([a-z]): \[", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        # `yolov8-seg`, `n` -> `yolov8n-seg`: where ultralytics looks for the scale
        scaled = (re.sub(r"^(yolo(?:e-)?v?\d+)", rf"\g<1>{scale}", file.stem) for scale in scales)
        names += [name for name in scaled if name != file.stem]
    return tuple(names)


def _read_registry(package: str) -> tuple[str, ...]:
    """Names in the `register_model` decorators of a package, from its source."""
    texts = (file.read_text(encoding="utf-8") for file in _files(package, "models", "*.py"))
    return tuple(sorted(found[1] or found[2] for text in texts for found in _REGISTERED.finditer(text)))


def _files(package: str, folder: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    roots = (spec.submodule_search_locations if spec else None) or ()
    return sorted(path for root in roots for path in Path(root, folder).rglob(pattern))


def unknown_model(name: str, library: str = "") -> ModelError:
    """The error for a name that a library does not have (without `library`, none of them), with the nearest names."""
    from simam_inject.recipe.wording import nearest

    names = {"torchvision": list_torchvision(), "timm": list_timm(), "ultralytics": list_ultralytics()}
    known = names[library] if library else {one for listed in names.values() for one in listed}
    twice = set() if library else {*names["torchvision"]} & {*names["timm"]}
    near = []
    for one in nearest(name, known, count=5):
        near += [one, f"timm:{one}"] if one in twice else [one]
    found = f"{library} has no model {name!r}" if library else f"no library has a model {name!r}"
    advice = f" Did you mean {', '.join(near[:5])}?" if near else ""
    return ModelError(f"{found}.{advice} A model is named {FORMS}.")
