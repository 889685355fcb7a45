"""A recipe: an ordered list of rules; and how it is found by name, file or selector, and adjusted."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import ConfigDict, Field, model_validator

from simam_inject.errors import RecipeError, describe, did_you_mean
from simam_inject.recipe.grammar import KeyedError, RecipeModel, Text, as_tuple, read_as, write_location
from simam_inject.recipe.rule import Lambda, Rule, Where
from simam_inject.recipe.texts import read_file, read_shipped, read_yaml, shipped_recipes

DEFAULT_E_LAMBDA = 1e-4
"""Default of the authors' class."""
_NAME = re.compile(r"[\w\s-]+(\.json)?")
_SELECTOR = re.compile(r"\s*(after|before)\s+(.+?)\s*", re.DOTALL | re.IGNORECASE)
_PARTS = re.compile(r"((?:[^.\[{\s]|\[[^\]]*\]|\{[^}]*\})+)(?:\.(.+))?", re.DOTALL)
"""A block and a child, separated at the first dot outside of brackets and braces."""
_WHOLE = {"after": "output", "before": "input"}
Rules = Annotated[Sequence[Rule], read_as(tuple[Rule, ...]), Field(max_length=100)]


class Recipe(RecipeModel):
    """Where SimAM is applied, for any model. A mistake raises `RecipeError`.

    `extends` names a shipped recipe, whose rules are appended at once: `extends` of the record is None. A site belongs
    to the first rule that matches it.

    >>> Recipe(rules=[Rule(block="Bottleneck", after="conv2")]).to_dict()
    {'version': 1, 'rules': [{'block': 'Bottleneck', 'after': 'conv2'}]}
    """

    model_config = ConfigDict(
        json_schema_extra={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "description": "Where SimAM is applied, for any model.",
            "anyOf": [{"required": ["rules"]}, {"required": ["extends"]}],
        }
    )
    homes: ClassVar[Mapping[str, str]] = dict.fromkeys(Rule.model_fields | Where.model_fields, "in an entry of 'rules'")
    version: Literal[1] = Field(default=1, description="Version of the recipe language.")
    name: Text = Field(default="", description="Name used in reports.")
    description: Text = Field(default="", description="Purpose and source.")
    extends: Text | None = Field(default=None, description="Name of a shipped recipe whose rules are appended.")
    e_lambda: Lambda = Field(default=DEFAULT_E_LAMBDA, description="Lambda of every rule without its own.")
    rules: Rules = Field(default=(), description="In order; a site belongs to the first rule that matches it.")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON types; defaults are left out, the version is not."""
        return {"version": 1} | super().to_dict()

    @model_validator(mode="before")
    @classmethod
    def _resolve_extends(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("rules"), Rule):  # which could be iterated
            raise KeyedError("rules", "found a Rule; expected a list: [Rule(...)]")
        if not isinstance(data, Mapping) or data.get("extends") is None:
            return data
        base = load_text(read_shipped(data["extends"], "extends"), "base")
        own = () if data.get("rules") is None else data["rules"]
        if not isinstance(own, list | tuple):
            return {**data, "extends": None}
        e_lambda = base.e_lambda if data.get("e_lambda") is None else data["e_lambda"]
        return {**data, "e_lambda": e_lambda, "extends": None, "rules": (*own, *base.rules)}

    @model_validator(mode="before")
    @classmethod
    def _check_selectors(cls, data: Any) -> Any:
        """Refuse a selector in the place of a rule, with the rule to write: a selector is a whole recipe."""
        rules = data.get("rules") if isinstance(data, Mapping) else None
        for index, rule in enumerate(rules if isinstance(rules, list | tuple) else ()):
            if isinstance(rule, str) and _SELECTOR.fullmatch(rule):
                written = yaml.safe_dump(load_recipe(rule).rules[0].to_dict(), default_flow_style=True, sort_keys=False)
                raise RecipeError(f"rules[{index}]: found {describe(rule)}, a selector; write {written.strip()}")
        return data

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if not self.rules:
            raise ValueError("has no rules; write rules: [{block: Bottleneck, after: conv2}], or extends: paper")
        return self


RecipeLike = Recipe | Mapping[str, Any] | str | os.PathLike[str]
"""What names a recipe."""


def load_recipe(source: RecipeLike) -> Recipe:
    """Read a recipe.

    Args:
        source: a `Recipe`; a mapping of JSON types; the name of a shipped recipe; a path to a YAML file; or a one-line
            selector.

    Returns:
        The validated, frozen recipe; the same object if it was one.

    Raises:
        RecipeError: the recipe does not exist, or is not valid.

    >>> load_recipe("after bottleneck.conv2").rules[0].selector
    'block bottleneck, after conv2'
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return Recipe.from_dict(source)
    if isinstance(source, str) and (named := _load_named(source)) is not None:
        return named
    if not isinstance(source, str | os.PathLike):
        raise RecipeError(
            f"recipe: found {describe(source)}; expected a Recipe, a mapping, the name of a shipped recipe, a path "
            "to a YAML file, or a selector such as 'after bottleneck.conv2'"
        )
    path = Path(source)
    data = read_file(path)
    try:
        return load_text(data, path.stem)
    except RecipeError as error:
        raise RecipeError(f"{error} (in {path})") from None


def _load_named(source: str) -> Recipe | None:
    """The recipe of a selector, or a shipped one; None for what looks like a path."""
    if (word := source.strip().lower()) in _WHOLE:
        raise RecipeError(f"recipe: found {describe(source)}; write {word} BLOCK.CHILD, e.g. '{word} bottleneck.conv2'")
    if found := _SELECTOR.fullmatch(source):
        return _read_selector(found[1].lower(), found[2])
    names = shipped_recipes()
    if source in names:
        return load_text(read_shipped(source), source)
    is_file = os.path.isfile(source)  # noqa: PTH113 - that of `Path` raises for a text that no file can have as name
    if is_file or source.endswith((".yaml", ".yml")) or os.sep in source or "/" in source:
        return None
    raise RecipeError(
        f"recipe: {describe(source)} is neither a shipped recipe ({', '.join(names)}), a YAML file, nor a selector "
        f"such as 'after bottleneck.conv2'{did_you_mean(source, names) if _NAME.fullmatch(source) else ''}"
    )


def _read_selector(position: str, text: str) -> Recipe:
    """The recipe of one rule for `after bottleneck`, `after bottleneck.conv2`, `before basicblock.residual`."""
    name = f"{position} {text}"
    parts = _PARTS.fullmatch(text)
    if parts is None:
        raise RecipeError(f"selector: found {describe(name)}; expected after or before, then BLOCK or BLOCK.CHILD")
    try:
        rule = Rule.from_dict({"block": parts[1], position: parts[2] or _WHOLE[position]})
    except RecipeError as error:
        raise RecipeError(f"{error} (in the selector {describe(name)})") from None
    return Recipe(name=name, rules=[rule])


def adjusted(recipe: Recipe, exclude: Sequence[str] = (), e_lambda: float | None = None) -> Recipe:
    """Return the recipe with additional exclusions for every rule, and one lambda for all rules; or a `RecipeError`."""
    if not exclude and e_lambda is None:
        return recipe
    data = recipe.to_dict()
    for rule in data["rules"]:
        globs = [*as_tuple(rule.get("exclude", ())), *as_tuple(exclude)]
        rule.update({"exclude": globs or None} | ({} if e_lambda is None else {"e_lambda": None}))
    return Recipe.from_dict(data | ({} if e_lambda is None else {"e_lambda": e_lambda}))


def load_text(text: str | bytes, name: str) -> Recipe:
    """The recipe in a YAML text, with this name unless it has its own; or a `RecipeError`."""
    data = read_yaml(text)
    _check_values(data)
    return Recipe.from_dict({"name": name} | data if isinstance(data, dict) else data)


def _check_values(data: Any, *location: int | str) -> None:
    """Refuse keys without a value, which are mistakes in a file. In Python, None is as good as no key."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        if value is None and isinstance(data, dict):
            raise RecipeError(f"{write_location([*location, key])}: has no value; add one, or remove the key")
        _check_values(value, *location, key)
