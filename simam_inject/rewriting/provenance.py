"""Which recipes a model's SimAM came from: plain data on the module that was given to `inject`, so that it follows
copies and pickles, and a saved file can tell.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from simam_inject.rewriting.classes import is_injected

RECIPES = "_simam_recipes"
"""Instance attribute: a tuple of recipes as dicts, in the order they were applied."""


def recipes_in(model: nn.Module) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Every recipe that was applied to the model or to a part of it: (path of that part, the recipe)."""
    return tuple((path, recipe) for path, module in model.named_modules() for recipe in recipes_of(module))


def recipes_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """The recipes that were applied to this very module; none if no SimAM is left in it, whoever took the last one."""
    found: tuple[dict[str, Any], ...] = module.__dict__.get(RECIPES, ())
    return found if found and any(map(is_injected, module.modules())) else ()


def set_recipes(module: nn.Module, recipes: tuple[dict[str, Any], ...]) -> None:
    """Replace what is known of this module; an empty tuple leaves no trace."""
    module.__dict__.pop(RECIPES, None)
    if recipes:
        module.__dict__[RECIPES] = recipes


def forget_recipes(model: nn.Module) -> None:
    """Leave no trace, in the model and its parts."""
    for module in model.modules():
        set_recipes(module, ())
