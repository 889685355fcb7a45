"""The record of an injection, as safetensors files, Lightning checkpoints and the YAML of a YOLO contain it.

It is plain data from a file that is not trusted, so every field is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from importlib import metadata
from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import attach, attended_in
from simam_inject.editing.presence import presences_in
from simam_inject.editing.serialization import ExampleRecord, Recipes, ValidInsertion, checked
from simam_inject.errors import FileError, ModelError, RecipeError, a_type
from simam_inject.planning.insertions import Insertion, Line
from simam_inject.planning.plan import Insertions
from simam_inject.recipe import Recipe
from simam_inject.source import STRICT

FORMAT = 3
KEY = "simam_inject"
"""Key of the manifest in the metadata of a safetensors file, and of the record in a checkpoint of Lightning."""


def _known(number: int) -> int:
    if number != FORMAT:
        age = "a newer" if number > FORMAT else "an older"
        raise ValueError(f"it was written in format {number} by {age} simam_inject; this one reads format {FORMAT}")
    return number


def _resolved(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return [Recipe.from_dict(recipe).to_dict() for recipe in recipes]
    except (RecipeError, RecursionError) as error:
        raise ValueError(f"it holds a recipe that this package cannot read: {error}") from None


class Record(BaseModel):
    """The SimAM sites of a network, and the recipes that they come from."""

    model_config = ConfigDict(**STRICT, frozen=True)

    format: Annotated[int, AfterValidator(_known)] = FORMAT
    sites: list[ValidInsertion]
    """In module order; empty for a model without SimAM."""
    recipes: Annotated[Recipes, AfterValidator(_resolved)]
    """The recipes that were applied, resolved."""
    example: ExampleRecord | None = None
    """Shapes of the example that was given to `inject`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({site.module for site in self.sites}) < len(self.sites):
            raise ValueError("it lists the same SimAM twice")
        if len({_place(site) for site in self.sites}) < len(self.sites):
            raise ValueError("it lists two SimAMs for the same value")
        return self

    @classmethod
    def of(cls, network: nn.Module, **more: Any) -> Self:
        """The record of a network as it is now; `more` holds the other fields of a subclass.

        Raises:
            FileError: it holds attention other than SimAM.
        """
        sites = []
        for entry in attended_in(network):
            attention, name = entry.attention, entry.site.name
            if attention is None:
                raise FileError(f"the SimAM at {name} was removed; call eject(model), and inject it again")
            if not isinstance(attention, SimAM):
                advice = "save model.state_dict(), and keep the recipe and the factory"
                raise FileError(f"the attention at {name} is {a_type(attention)}, and files hold SimAM only; {advice}")
            if attention.channel_dim != entry.site.channel_dim:
                found = f"channel_dim {attention.channel_dim}, and was planned for {entry.site.channel_dim}"
                raise FileError(f"the SimAM at {name} has {found}: inject the model again")
            sites.append(entry.insertion)
        presences = presences_in(network)
        recipes = [recipe for presence in presences.values() for recipe in presence.recipes]
        example = presences[""].example if "" in presences else None
        made = cls.model_construct(sites=sites, recipes=recipes, example=example, **more)
        return cls.read(made.model_dump_json(), "the record of this model")

    @classmethod
    def read(cls, data: object, name: str = "its SimAM record") -> Self:
        """The record in plain data, or in a text of JSON.

        Raises:
            FileError: it is not a record of this format, or a field is not valid.
        """
        try:
            text = data if isinstance(data, str) else json.dumps(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise FileError(f"{name} is not plain data: {error}") from None
        return cast(Self, checked(cls, text, name))

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """The sites as `simam_inject.injected` lists them."""
        return Insertions(self.sites)

    def differences(self, network: nn.Module) -> list[str]:
        """One line for each attended value that has another lambda, or SimAM in one of the two only."""
        present, wanted = (
            {_place(site): f"e_lambda {site.e_lambda}" for site in sites}
            for sites in (Record.of(network).sites, self.sites)
        )
        return [
            f"  {place}: {present.get(place, 'none')} in the model, {wanted.get(place, 'none')} in the file"
            for place in sorted(present | wanted)
            if present.get(place) != wanted.get(place)
        ]

    def attach_to(self, network: nn.Module) -> None:
        """Replace the sites of a network by these, all or nothing. Nothing is traced or run.

        Raises:
            FileError: a module that should have a SimAM is missing or cannot have one.
        """
        try:
            attach(network, self.sites, recipes=self.recipes, example=self.example)
        except ModelError as error:
            raise FileError(f"SimAM cannot be restored: {error}") from None

    def set_strengths(self, network: nn.Module) -> None:
        """Set strength and gain of each SimAM of a network that has the same sites."""
        sites = {_place(site): site for site in self.sites}
        for entry in attended_in(network):
            attention: Any = entry.attention
            site = sites[_place(entry.site)]
            attention.strength, attention.gain = site.strength, site.gain


class Manifest(Record):
    """The metadata of a saved file."""

    versions: dict[Line, Line]
    """Of this package, torch, and the libraries whose classes the model is made of."""
    layout: str
    """SHA-256 of the names and shapes of the tensors."""

    @property
    def age(self) -> str:
        """Which libraries had other versions when the file was written, as a last line of a message."""
        here = dict.fromkeys(self.versions, "not installed") | versions_of(self.versions)
        changed = [f"{name} {then} (here {here[name]})" for name, then in self.versions.items() if here[name] != then]
        return f"\n  It was written with {', '.join(changed)}." if changed else ""


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed, in this order."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):  # the user's own code
            found[package] = metadata.version(package)
    return found


def _place(site: Insertion) -> str:
    return site.name + (f" before {site.reader}" if site.reader else "")
