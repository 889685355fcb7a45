"""SimAM in any CNN: declarative surgery that keeps every weight, and proves that nothing else changed."""

from __future__ import annotations

import importlib
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
    from simam_inject.planning.plan import Plan as Plan
    from simam_inject.recipe import Recipe as Recipe
    from simam_inject.recipe import Rule as Rule

# Imported on first use: `simam-inject --help` must not wait for torch.
_HOMES = {
    "InjectError": "errors",
    "Plan": "planning.plan",
    "Recipe": "recipe",
    "Rule": "recipe",
    "SimAM": "attention",
    "bypass": "api",
    "eject": "api",
    "inject": "api",
    "injected": "api",
    "plan": "api",
    "simam": "attention",
    "verify": "api",
}

__all__ = [
    "InjectError",
    "Plan",
    "Recipe",
    "Rule",
    "SimAM",
    "bypass",
    "eject",
    "inject",
    "injected",
    "plan",
    "simam",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
