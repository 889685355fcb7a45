"""From the options that say where to one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simam_inject.errors import NoMatchError, RecipeError
from simam_inject.recipe import Recipe, load_recipe, selector
from simam_inject.recipe.names import Glob


def compose_recipe(
    recipe: str | None,
    after: Sequence[str] = (),
    before: Sequence[str] = (),
    exclude: Sequence[str] = (),
    e_lambda: float | None = None,
) -> Recipe:
    """The rules of the recipe, then one for each selector; the first that takes a site owns it.

    Args:
        recipe: Name of a shipped recipe or path of a YAML file.
        after: Selectors, each a rule of its own.
        before: The same.
        exclude: Globs that every rule leaves out, beside its own.
        e_lambda: Lambda of every rule, whatever the recipe says.

    Raises:
        RecipeError: Nothing says where, or what does is not valid.
    """
    base = load_recipe(recipe) if recipe else None
    selectors = [("after", text) for text in after] + [("before", text) for text in before]
    if base is None and not selectors:
        raise RecipeError("nothing says where SimAM goes: give --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    if base is not None and not selectors and not exclude and e_lambda is None:
        return base
    rules = [*(base.rules if base else ()), *(selector(position, text) for position, text in selectors)]
    data: dict[str, Any] = base.to_dict() if base else {}
    names = [base.name or str(recipe)] if base else []
    data["name"] = ", ".join(names + [f"{position} {text}" for position, text in selectors])
    data["rules"] = [_adjust(rule.to_dict(), exclude, e_lambda) for rule in rules]
    return Recipe.from_dict(data if e_lambda is None else {**data, "e_lambda": e_lambda})


def _adjust(rule: dict[str, Any], exclude: Sequence[str], e_lambda: float | None) -> dict[str, Any]:
    own = rule.get("exclude", [])
    excluded = [*([own] if isinstance(own, str) else own), *exclude]
    adjusted = {**rule, "exclude": excluded} if excluded else dict(rule)
    if e_lambda is not None:
        adjusted.pop("e_lambda", None)
    return adjusted


def check_exclude(exclude: Sequence[str], model: Any, inputs: Any) -> None:
    """Refuse an `--exclude` that leaves nothing out because it matches nothing, whatever the rules are.

    Raises:
        NoMatchError: One matches no path of the model.
    """
    if exclude:
        from simam_inject.matching import every_path, explain_idle
        from simam_inject.surgery import survey

        paths = every_path(survey(model, example_inputs=inputs))
        if message := explain_idle("--exclude", [Glob(text) for text in exclude], paths):
            raise NoMatchError(message)
