"""From the options that say where to one recipe."""

from __future__ import annotations

from typing import Any

from simam_inject.cli.options import Options
from simam_inject.errors import RecipeError
from simam_inject.recipe import Recipe, load_recipe, selector


def compose_recipe(options: Options) -> Recipe:
    """The rules of `--recipe`, then one for each selector; the first rule that takes a site owns it.

    Raises:
        RecipeError: No option says where, or one that does is not valid.
    """
    base = load_recipe(options.recipe) if options.recipe else None
    if base is None and not options.selectors:
        raise RecipeError("no site given: use --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    rules = [*(base.rules if base else ()), *(selector(position, text) for position, text in options.selectors)]
    names = [base.name or str(options.recipe)] if base else []
    data: dict[str, Any] = base.to_dict() if base else {}
    data["name"] = ", ".join(names + [f"{position} {text}" for position, text in options.selectors])
    data["rules"] = [_adjust(rule.to_dict(), options) for rule in rules]
    return Recipe.from_dict(data if options.e_lambda is None else {**data, "e_lambda": options.e_lambda})


def _adjust(rule: dict[str, Any], options: Options) -> dict[str, Any]:
    """A rule with the globs of `--exclude` beside its own, and without its lambda where `--e-lambda` is given."""
    own = rule.get("exclude", [])
    excluded = [*([own] if isinstance(own, str) else own), *(options.exclude or ())]
    adjusted = {**rule, "exclude": excluded} if excluded else dict(rule)
    if options.e_lambda is not None:
        adjusted.pop("e_lambda", None)
    return adjusted


def as_code(options: Options, recipe: Recipe) -> str:
    """The recipe as the shortest thing that `inject` takes."""
    named = [*([options.recipe] if options.recipe else []), *(" ".join(place) for place in options.selectors)]
    plain = len(named) == 1 and not options.exclude and options.e_lambda is None
    keys = {key: value for key, value in recipe.to_dict().items() if key in ("e_lambda", "rules")}
    return repr(named[0] if plain else keys)
