"""The record of an injection: data, never code. The same one stands in safetensors files and in a YOLO's YAML.

Everything in it may have been written by somebody else, so every field is checked before anything is done with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import attach, attended_in, detach
from simam_inject.editing.checking import SiteRecord, checked_example, checked_sites, first_problem
from simam_inject.editing.presence import presence_of
from simam_inject.editing.records import insertion_of
from simam_inject.errors import FileError, ModelError, RecipeError
from simam_inject.planning.records import Insertion
from simam_inject.recipe import Recipe

FORMAT = 2
KEY = "simam_inject"
"""Key of the manifest in the metadata of a safetensors file."""

Setting = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(gt=0)]]


class Record(BaseModel):
    """Where SimAM is in one network, and what it was made of."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    format: int = FORMAT
    sites: list[SiteRecord]
    """In module order; empty for a model without SimAM."""
    settings: list[Setting]
    """Strength and gain of each site."""
    recipes: list[dict[str, Any]]
    """The recipes that were applied, resolved."""
    example: dict[str, Any] | None = None
    """Shapes of the example that was given to `inject`."""

    @field_validator("format")
    @classmethod
    def _known(cls, value: int) -> int:
        if value != FORMAT:
            age = "a newer" if value > FORMAT else "an older"
            raise ValueError(f"it was written in format {value} by {age} simam_inject; this one reads format {FORMAT}")
        return value

    @field_validator("recipes")
    @classmethod
    def _resolved(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return [Recipe.from_dict(recipe).to_dict() for recipe in value]
        except (RecipeError, RecursionError) as error:
            raise ValueError(f"it holds a recipe that this package cannot read: {error}") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            checked_sites(self.sites)
            checked_example(self.example)
        except FileError as error:
            raise ValueError(str(error)) from None
        if len(self.settings) != len(self.sites):
            raise ValueError("it has no strength and gain for every site")
        modules = [(site["edit"]["module"], site["child"]) for site in self.sites]
        if len(set(modules)) < len(modules):
            raise ValueError("it lists the same SimAM twice")
        return self

    @classmethod
    def of(cls, network: nn.Module) -> dict[str, Any]:
        """The record of a network as it is now, as plain data (a dict of JSON types).

        Raises:
            FileError: it holds attention other than SimAM.
        """
        sites, settings = [], []
        for entry in attended_in(network):
            attention = entry.attention
            if not isinstance(attention, SimAM):
                raise FileError(
                    f"the attention at {entry.site['path']} is a {type(attention).__name__}, and files hold SimAM "
                    "only; save model.state_dict(), and keep the recipe and the factory"
                )
            sites.append({**entry.site, "e_lambda": float(attention.e_lambda)})
            settings.append((float(attention.strength), float(attention.gain)))
        found = [presence_of(module) for module in network.modules()]
        recipes = [recipe for presence in found if presence is not None for recipe in presence.recipes]
        root = presence_of(network)
        data = {"sites": sites, "settings": settings, "recipes": recipes, "example": root.example if root else None}
        return cast_json({"format": FORMAT, **data})

    @classmethod
    def read(cls, data: object, name: str = "its SimAM record") -> Self:
        """The record that plain data hold.

        Raises:
            FileError: they hold no record of this format, or a field of it is not valid.
        """
        if not isinstance(data, Mapping):
            raise FileError(f"{name} is a {type(data).__name__}, not a table")
        try:
            return cls.model_validate_json(json.dumps(dict(data)))
        except ValidationError as error:
            raise FileError(f"{name} is not valid: {first_problem(error)}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise FileError(f"{name} is not plain data: {error}") from None

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """The sites as `simam_inject.injected` lists them."""
        found = []
        for site, (strength, gain) in zip(self.sites, self.settings, strict=True):
            attention = nn.Module()
            attention.strength, attention.gain = cast(Any, strength), cast(Any, gain)
            found.append(insertion_of(site, attention))
        return tuple(found)

    def check_holders(self, network: nn.Module) -> None:
        """See that the network has every module that is to hold a SimAM. Runs nothing of the network.

        Raises:
            FileError: one is missing.
        """
        modules = {path for path, _ in network.named_modules(remove_duplicate=False)}
        for site in self.sites:
            if site["edit"]["module"] not in modules:
                raise FileError(
                    f"{type(network).__name__} has no module {site['edit']['module']!r}, which should have SimAM"
                )

    def attach_to(self, network: nn.Module) -> None:
        """Make these the sites of a network, instead of those that it has; all or nothing. Traces and runs nothing.

        Raises:
            FileError: the network cannot hold them.
        """
        self.check_holders(network)
        if not self.sites:
            detach(network)
            return
        try:
            attach(network, self.sites, recipes=self.recipes, example=self.example, settings=self.settings)
        except ModelError as error:
            raise FileError(f"SimAM cannot be restored: {error}") from None

    def set_strengths(self, network: nn.Module) -> None:
        """Give each SimAM of a network, which holds the very sites of this record, its strength and gain."""
        for site, (strength, gain) in zip(self.sites, self.settings, strict=True):
            attention: Any = network.get_submodule(site["edit"]["module"])._modules[site["child"]]
            attention.strength, attention.gain = strength, gain


class Manifest(Record):
    """What a saved file says beside its weights."""

    versions: dict[str, str]
    """Of this package, torch, and the libraries whose classes the model is made of."""
    layout: str
    """SHA-256 of the names and shapes of the tensors; see `tables.layout_of`."""


def cast_json(data: dict[str, Any]) -> dict[str, Any]:
    """The same in the types of JSON: tuples become lists."""
    result: dict[str, Any] = json.loads(json.dumps(data))
    return result
