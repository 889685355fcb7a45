"""What a saved file tells beside its weights: recipes, sites, versions, a hash of keys and shapes. Data, never code.

It stands as one JSON text under the key `simam_inject` of the safetensors metadata. Everything in it may have been
written by somebody else, so every field is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simam_inject.errors import FileError, RecipeError
from simam_inject.planning.records import Insertion
from simam_inject.recipe import Recipe
from simam_inject.rewriting.records import Specification
from simam_inject.rewriting.rewriter import insertion_of

KEY = "simam_inject"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """The metadata of one saved file."""

    sites: tuple[tuple[str, Specification], ...]
    """What each module held, by its path; empty for a model that was saved without SimAM."""
    recipes: tuple[tuple[str, dict[str, Any]], ...]
    """The resolved recipes, each with the path of the module that was given to `inject` ("" is the model)."""
    versions: tuple[tuple[str, str], ...]
    """Of this package, torch, and the libraries whose classes the model is made of."""
    layout: str
    """SHA-256 of the names and shapes of the tensors; see `tables.layout_of`."""

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """The sites as `simam_inject.injected` lists them."""
        return tuple(insertion_of(path, edit) for path, recorded in self.sites for edit in recorded.edits)

    def to_json(self) -> str:
        """The text under `KEY`."""
        return json.dumps(
            {
                "format": FORMAT,
                "versions": dict(self.versions),
                "layout": self.layout,
                "recipes": [{"module": path, "recipe": recipe} for path, recipe in self.recipes],
                "sites": [{"module": path, "specification": recorded.to_dict()} for path, recorded in self.sites],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Inverse of `to_json`.

        Raises:
            FileError: not a manifest, one of another format, or a field of it is not valid.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise FileError("its SimAM metadata is no JSON") from None
        if not isinstance(data, dict):
            raise FileError("its SimAM metadata is not a JSON object")
        _check_format(data.get("format"))
        recipes = tuple(_read_recipe(entry) for entry in _entries(data, "recipes", "recipe"))
        sites = tuple(
            (entry["module"], Specification.from_dict(entry["specification"]))
            for entry in _entries(data, "sites", "specification")
        )
        if len({path for path, _ in sites}) < len(sites):
            raise FileError("its SimAM metadata lists one module twice")
        versions, layout = data.get("versions"), data.get("layout")
        if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
            raise FileError("its SimAM metadata has no table of versions")
        if not isinstance(layout, str):
            raise FileError("its SimAM metadata has no hash of names and shapes")
        return cls(sites, recipes, tuple(versions.items()), layout)


def _check_format(found: Any) -> None:
    if found == FORMAT and type(found) is int:
        return
    if type(found) is int:
        age = "a newer" if found > FORMAT else "an older"
        raise FileError(f"it was written in format {found} by {age} simam_inject; this one reads format {FORMAT}")
    raise FileError(f"its SimAM metadata names the format {found!r:.40}; this package reads format {FORMAT}")


def _entries(data: Mapping[str, Any], name: str, content: str) -> list[dict[str, Any]]:
    entries = data.get(name)
    well_formed = isinstance(entries, list) and all(
        isinstance(entry, dict) and set(entry) == {"module", content} and isinstance(entry["module"], str)
        for entry in entries
    )
    if not isinstance(entries, list) or not well_formed:
        raise FileError(f"its SimAM metadata has no list of {name}")
    return entries


def _read_recipe(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        return entry["module"], Recipe.from_dict(entry["recipe"]).to_dict()
    except (RecipeError, RecursionError) as error:
        raise FileError(f"it holds a recipe that this package cannot read: {error}") from None
