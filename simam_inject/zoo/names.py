"""Which names exist, and which are near to one that does not. Lists are made once, when first asked for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from simam_inject.errors import ModelError

FORMS = (
    "NAME, torchvision:NAME, timm:NAME, ultralytics:NAME, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, FILE.pt or FILE.yaml"
)
"""How a model may be named, for error messages."""


_REGISTERED = re.compile(r'^@register_model(?:\((?:name="(\w+)")?\))?\n(?:(?!def )[^\n]+\n)*def (\w+)', re.MULTILINE)


def _read_registry(package: str) -> tuple[str, ...]:
    """Names in the `register_model` decorators of a package, from its source: importing the package takes seconds."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    texts = (file.read_text("utf-8") for folder in folders for file in Path(folder, "models").rglob("*.py"))
    return tuple(sorted(found[1] or found[2] for text in texts for found in _REGISTERED.finditer(text)))


@cache
def list_torchvision() -> tuple[str, ...]:
    """Names of torchvision's model builders."""
    return _read_registry("torchvision")


@cache
def list_timm() -> tuple[str, ...]:
    """Names of timm's architectures, without tags."""
    return _read_registry("timm")


def is_defined_in_timm(name: str) -> bool:
    """True if timm itself has the architecture."""
    return name in list_timm()


def check_name(name: str) -> None:
    """Raise for a name that no library has, before any of them is imported. Files and factories are not checked.

    Raises:
        ModelError: the name is unknown.
    """
    library, colon, rest = name.partition(":")
    if library == "timm" and colon:
        if rest.partition(".")[0] not in list_timm():
            raise unknown_model(rest, list_timm(), library="timm")
    elif library == "torchvision" and colon:
        if rest not in list_torchvision():
            raise unknown_model(rest, list_torchvision(), library="torchvision")
    elif not colon and not name.endswith((".py", ".pt", ".yaml", ".yml")) and name.strip():
        own = {*list_torchvision(), *list_ultralytics()}
        is_missing_yolo = (
            name.startswith(("yolo", "rtdetr")) and not list_ultralytics()
        )  # `build` says how to install it
        if name not in own and name.partition(".")[0] not in list_timm() and not is_missing_yolo:
            timm = (f"timm:{other}" if other in own else other for other in list_timm())
            raise unknown_model(name, [*list_torchvision(), *timm, *list_ultralytics()])


@cache
def list_ultralytics() -> tuple[str, ...]:
    """Names of the models ultralytics packages a YAML for, in every scale; empty if it is not installed.

    It reads the folder and leaves the package itself alone: importing it takes seconds.
    """
    spec = find_spec("ultralytics")
    folders = spec.submodule_search_locations if spec else None
    names: list[str] = []
    for file in sorted(path for folder in folders or () for path in Path(folder, "cfg", "models").rglob("*.yaml")):
        names.append(file.stem)
        scales = re.findall(r"^  ([a-z]): \[", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        names += [scaled for scale in scales if (scaled := _scale_name(file.stem, scale)) != file.stem]
    return tuple(names)


def _scale_name(stem: str, scale: str) -> str:
    """`yolov8-seg`, `n` -> `yolov8n-seg`: where ultralytics looks for the scale."""
    return re.sub(r"^(yolo(?:e-)?v?\d+)", rf"\g<1>{scale}", stem)


def unknown_model(name: str, candidates: Iterable[str], *, library: str = "") -> ModelError:
    """The error for a name that no library knows, with the nearest names that exist.

    Args:
        name: What was asked for, without a library's prefix.
        candidates: Names to compare with, in the form the user should write.
        library: The library that was asked; "" for all of them.
    """
    near = find_nearest(name, candidates)
    found = f"{library} has no model {name!r}" if library else f"no library has a model {name!r}"
    advice = f" Did you mean {', '.join(near)}?" if near else ""
    return ModelError(f"{found}.{advice} A model is named {FORMS}.")


def find_nearest(name: str, candidates: Iterable[str], count: int = 5) -> tuple[str, ...]:
    """Those of `candidates` whose part after the library's prefix is most like `name`, best first."""
    by_bare_name: dict[str, list[str]] = {}
    for candidate in candidates:
        by_bare_name.setdefault(candidate.rpartition(":")[2].lower(), []).append(candidate)
    bare_names = difflib.get_close_matches(name.lower(), by_bare_name, n=count, cutoff=0.6)
    return tuple(candidate for bare_name in bare_names for candidate in by_bare_name[bare_name])[:count]
