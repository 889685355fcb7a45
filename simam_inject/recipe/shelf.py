"""The recipes that come with the program: in the wheel beside the package's modules, in a checkout at its top."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from simam_inject.errors import RecipeError
from simam_inject.recipe.wording import describe, did_you_mean

_SUFFIX = ".yaml"


def find_shelf() -> Traversable:
    """The folder that holds the shipped recipes.

    Raises:
        RecipeError: the installation has lost it.
    """
    packaged = files("simam_inject") / "recipes"
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    for folder in (packaged, checkout):
        if (folder / f"paper{_SUFFIX}").is_file():
            return folder
    raise RecipeError("recipe: the shipped recipes are missing from this installation; install simam_inject again")


def shipped_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(_SUFFIX) for entry in find_shelf().iterdir() if entry.name.endswith(_SUFFIX))
    )


def read_shipped(name: object, place: str = "recipe") -> str:
    """The text of a shipped recipe.

    Args:
        name: one of `shipped_recipes()`.
        place: what the message starts with.

    Raises:
        RecipeError: there is none of that name.
    """
    names = shipped_recipes()
    if not isinstance(name, str) or name not in names:
        near = did_you_mean(name, names) if isinstance(name, str) else ""
        raise RecipeError(f"{place}: no shipped recipe is named {describe(name)}; there are {', '.join(names)}{near}")
    return (find_shelf() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
