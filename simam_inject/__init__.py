"""SimAM attention for any CNN: apply it to an existing network by a recipe, keep its weights, verify the result."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simam_inject.api import bypass as bypass
    from simam_inject.api import eject as eject
    from simam_inject.api import inject as inject
    from simam_inject.api import injected as injected
    from simam_inject.api import plan as plan
    from simam_inject.api import verify as verify
    from simam_inject.attention import SimAM as SimAM
    from simam_inject.attention import simam as simam
    from simam_inject.errors import InjectError as InjectError
    from simam_inject.maps import attention_maps as attention_maps
    from simam_inject.planning.plan import Plan as Plan
    from simam_inject.recipe import Recipe as Recipe
    from simam_inject.recipe import Rule as Rule
    from simam_inject.warmup import Ramp as Ramp
    from simam_inject.warmup import calibrate as calibrate
    from simam_inject.warmup import set_strength as set_strength

    __version__: str

# Imported on first use: `simam-inject --help` must not wait for torch.
_HOMES = {
    "InjectError": "errors",
    "Plan": "planning.plan",
    "Ramp": "warmup",
    "Recipe": "recipe",
    "Rule": "recipe",
    "SimAM": "attention",
    "attention_maps": "maps",
    "bypass": "api",
    "calibrate": "warmup",
    "eject": "api",
    "inject": "api",
    "injected": "api",
    "plan": "api",
    "set_strength": "warmup",
    "simam": "attention",
    "verify": "api",
}

__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        _prepare()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # `simam_inject.plan` and its like stay what they are, whatever modules of these names are imported later.
    globals()[name] = value
    return value


def _version() -> str:
    from importlib import metadata  # slow to import

    try:
        return metadata.version("simam_inject")
    except metadata.PackageNotFoundError:  # a source tree that was not installed
        import tomllib
        from pathlib import Path

        project = Path(__file__).parents[1] / "pyproject.toml"
        if not project.is_file():
            return "0+unknown"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def _prepare() -> None:
    """Let a restricted `torch.load` know the classes that an injected model holds, and ultralytics the key `simam`."""
    for name in ("editing.attach", "adapters") if sys.modules.get("torch") is not None else ():
        importlib.import_module(f"{__name__}.{name}")
    if hasattr(sys.modules.get("ultralytics.models"), "YOLO"):  # imported to its end
        try:
            importlib.import_module(f"{__name__}.integrations.ultralytics")
        except (ImportError, AttributeError, KeyError) as error:  # this release has other function names
            warnings.warn(f"models of this release of ultralytics cannot be injected: {error!r}", stacklevel=3)


_prepare()


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", "__doc__", "__name__", "__file__", "__path__"})
