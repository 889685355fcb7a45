"""A recipe: an ordered list of rules, of which the first that takes a site owns it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field, model_validator

from simam_inject.errors import RecipeError
from simam_inject.recipe.fields import DEFAULT_E_LAMBDA, DefaultLambda, Text, Version
from simam_inject.recipe.problems import Location
from simam_inject.recipe.rule import Grammar, Rule, Where
from simam_inject.recipe.wording import describe

MAX_RULES = 100


class Recipe(Grammar):
    """Where SimAM goes, whatever the model. A mistake raises `RecipeError`.

    `extends` names a shipped recipe; it is resolved at once: the record holds its own rules, then those of the base, so
    that its own rules take their sites first, and `extends` is None.

    >>> Recipe(rules=[Rule(block="Bottleneck", after="conv2")]).to_dict()
    {'rules': [{'block': 'Bottleneck', 'after': 'conv2'}], 'version': 1}
    """

    root: ClassVar[str] = "recipe"
    homes: ClassVar[Mapping[str, str]] = dict.fromkeys(Rule.model_fields | Where.model_fields, "in an entry of 'rules'")
    version: Version = Field(default=1, description="Version of the recipe language.")
    name: Text = Field(default="", description="What reports call the recipe.")
    description: Text = Field(default="", description="What it is for, and where it comes from.")
    extends: Text | None = Field(default=None, description="Name of a shipped recipe whose rules follow the own ones.")
    e_lambda: DefaultLambda = Field(default=DEFAULT_E_LAMBDA, description="The lambda of every rule that has none.")
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = Field(
        default=(), description="In order; the first that takes a site owns it."
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            rules: list[Rule] | tuple[Rule, ...] = (),
            version: int = 1,
            name: str = "",
            description: str = "",
            extends: str | None = None,
            e_lambda: float = DEFAULT_E_LAMBDA,
        ) -> None: ...

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | object) -> Self:
        """Read a recipe from JSON types, the inverse of `to_dict`.

        Raises:
            RecipeError: the message starts with the path of the offending key.
        """
        if not isinstance(data, Mapping):
            keys = ", ".join(cls.model_fields)
            raise RecipeError(f"recipe: found {describe(data)}; allowed is a mapping with the keys {keys}")
        for key in data:
            if not isinstance(key, str):
                raise RecipeError(f"recipe: found the key {describe(key)}; keys are texts")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON types; defaults are left out, the version is not."""
        return {"version": self.version} | super().to_dict()

    @classmethod
    def model_at(cls, location: Location) -> type[BaseModel] | None:
        """The model that stands at a location inside this one."""
        if location[:1] == ("rules",):
            return Rule.model_at(location[2:]) if len(location) > 1 else None
        return super().model_at(location)

    @model_validator(mode="before")
    @classmethod
    def _resolve_extends(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("extends") is None:
            return data
        from simam_inject.recipe.loading import load_base

        base = load_base(data["extends"])
        own = data.get("rules") or ()
        if not isinstance(own, list | tuple):
            return {**data, "extends": None}
        inherited = {"e_lambda": base.e_lambda} if data.get("e_lambda") is None else {}
        return {**data, **inherited, "extends": None, "rules": (*own, *base.rules)}

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if not self.rules:
            raise ValueError("has no rules; write rules: [{block: Bottleneck, after: conv2}], or extends: paper")
        return self
