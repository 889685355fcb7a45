"""A recipe: an ordered list of rules, of which the first that takes a site owns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from simam_inject.errors import RecipeError
from simam_inject.recipe.fields import DEFAULT_E_LAMBDA, Lambda, Text
from simam_inject.recipe.grammar import Grammar
from simam_inject.recipe.rule import Rule, Where
from simam_inject.recipe.texts import read_shipped, read_yaml
from simam_inject.recipe.wording import describe

MAX_RULES = 100
if TYPE_CHECKING:
    RulesField = Sequence[Rule]
else:
    RulesField = Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)]


class Recipe(Grammar):
    """Where SimAM goes, whatever the model. A mistake raises `RecipeError`.

    `extends` names a shipped recipe; it is resolved at once: the record holds its own rules, then those of the base, so
    that its own rules take their sites first, and `extends` is None.

    >>> Recipe(rules=[Rule(block="Bottleneck", after="conv2")]).to_dict()
    {'version': 1, 'rules': [{'block': 'Bottleneck', 'after': 'conv2'}]}
    """

    homes: ClassVar[Mapping[str, str]] = dict.fromkeys(Rule.model_fields | Where.model_fields, "in an entry of 'rules'")
    version: Literal[1] = Field(default=1, description="Version of the recipe language.")
    name: Text = Field(default="", description="Name used in reports.")
    description: Text = Field(default="", description="Purpose and source.")
    extends: Text | None = Field(default=None, description="Name of a shipped recipe whose rules are appended.")
    e_lambda: Lambda = Field(default=DEFAULT_E_LAMBDA, description="Lambda of every rule without its own.")
    rules: RulesField = Field(default=(), description="In order; a site belongs to the first rule that matches it.")

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read a recipe from JSON types, the inverse of `to_dict`.

        Raises:
            RecipeError: the message starts with the path of the offending key.
        """
        if not isinstance(data, Mapping):
            keys = ", ".join(cls.model_fields)
            raise RecipeError(f"recipe: found {describe(data)}; expected a mapping with the keys {keys}")
        if any(not isinstance(key, str) for key in data):
            raise RecipeError("recipe: found a key that is not a string")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON types; defaults are left out, the version is not."""
        return {"version": 1} | super().to_dict()

    @model_validator(mode="before")
    @classmethod
    def _resolve_extends(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("extends") is None:
            return data
        base = load_shipped(data["extends"], "extends")
        own = data.get("rules") or ()
        if not isinstance(own, list | tuple):
            return {**data, "extends": None}
        e_lambda = base.e_lambda if data.get("e_lambda") is None else data["e_lambda"]
        return {**data, "e_lambda": e_lambda, "extends": None, "rules": (*own, *base.rules)}

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if not self.rules:
            raise ValueError("has no rules; write rules: [{block: Bottleneck, after: conv2}], or extends: paper")
        return self


def load_shipped(name: object, place: str = "recipe") -> Recipe:
    """The shipped recipe of a name.

    Raises:
        RecipeError: there is none; the message starts with `place`.
    """
    return load_text(read_shipped(name, place), str(name))


def load_text(text: str | bytes, name: str) -> Recipe:
    """The recipe that a YAML text holds, by that name if it gives itself none.

    Raises:
        RecipeError: the text is not YAML, or not a recipe.
    """
    data = read_yaml(text)
    return Recipe.from_dict({"name": name} | data if isinstance(data, dict) else data)
