"""The record of an injection in `model.yaml["simam"]`: JSON types only, and checked before anything is done with them.

    {"version": 2, "recipes": [...], "sites": [{"path": "model.2", "strength": 1.0, ...}, ...], "example": {...}}

A YAML file of the user's own may have a recipe, the name of a shipped one or a selector in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import attach, attended_in
from simam_inject.editing.presence import presence_of
from simam_inject.editing.records import SiteRecord
from simam_inject.errors import FileError, ModelError

KEY = "simam"
VERSION = 2
_MAX_SITES = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that a network needs to be injected again."""

    sites: tuple[SiteRecord, ...]
    settings: tuple[tuple[float, float], ...]
    """Strength and gain of each site."""
    recipes: tuple[dict[str, Any], ...]
    """The resolved recipes that the sites came from."""
    example: dict[str, Any] | None = None
    """Shapes of the example's arguments."""
    ramp: dict[str, float] | None = None
    """Epochs and first strength of a ramp that a resumed training goes on with."""

    @property
    def recipe_name(self) -> str:
        """Names of the recipes, for people."""
        return ", ".join(str(recipe.get("name") or "unnamed") for recipe in self.recipes)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        sites = [
            {**site, "strength": float(strength), "gain": float(gain)}
            for site, (strength, gain) in zip(self.sites, self.settings, strict=True)
        ]
        data = {"version": VERSION, "recipes": list(self.recipes), "sites": sites, "example": self.example}
        if self.ramp is not None:
            data["ramp"] = self.ramp
        return dict(json.loads(json.dumps(data)))


def record_of_network(network: nn.Module, ramp: dict[str, float] | None = None) -> Record:
    """What is in the network now.

    Raises:
        ModelError: a site holds another attention module than SimAM, which a record cannot rebuild.
    """
    there, presence = list(attended_in(network)), presence_of(network)
    for entry in there:
        if not isinstance(entry.attention, SimAM):
            raise ModelError(
                f"{entry.site['path']} holds a {type(entry.attention).__name__}; ultralytics builds its networks anew, "
                "and only SimAM can be put back. Train this network with a loop of your own"
            )
    settings = tuple((entry.insertion.strength, entry.insertion.gain) for entry in there)
    recipes = tuple(presence.recipes) if presence is not None else ()
    return Record(tuple(e.site for e in there), settings, recipes, presence.example if presence else None, ramp)


def apply_record(network: nn.Module, record: Record) -> None:
    """Put the recorded sites into a network, instead of those that it has. Nothing is run, and no random number drawn.

    Raises:
        ModelError: the network has not the modules that the record names.
    """
    attach(network, record.sites, recipes=list(record.recipes), example=record.example, settings=record.settings)


def has_record(network: Any) -> bool:
    """True if the network's yaml asks for SimAM, in whatever form."""
    table = getattr(network, "yaml", None)
    return isinstance(table, Mapping) and table.get(KEY) is not None


def read(network: Any) -> Record | str | Mapping[str, Any]:
    """The record in a network's yaml; a recipe in the user's own words if it is one.

    Raises:
        FileError: it is neither.
    """
    found = network.yaml[KEY]
    if isinstance(found, str):
        if found.endswith((".yaml", ".yml")) or "/" in found or "\\" in found:
            raise FileError(f"model.yaml[{KEY!r}] names a file, {found!r}; write the recipe itself, or a shipped name")
        return found
    if not isinstance(found, Mapping):
        raise FileError(f"model.yaml[{KEY!r}] is a {type(found).__name__}; allowed is a recipe or its name")
    if "sites" not in found:
        return found
    if found.get("version") != VERSION:
        raise FileError(
            f"model.yaml[{KEY!r}] is a record of version {found.get('version')!r}; this package reads {VERSION}"
        )
    sites, recipes = found["sites"], found.get("recipes")
    if not isinstance(sites, list) or not 0 < len(sites) <= _MAX_SITES:
        raise FileError(f"model.yaml[{KEY!r}] has no list of sites")
    if not isinstance(recipes, list) or not all(isinstance(recipe, Mapping) for recipe in recipes):
        raise FileError(f"model.yaml[{KEY!r}] has no list of recipes")
    pairs = [_read_site(site) for site in sites]
    return Record(
        tuple(site for site, _ in pairs),
        tuple(settings for _, settings in pairs),
        tuple(dict(recipe) for recipe in recipes),
        _mapping(found.get("example"), "example"),
        _mapping(found.get("ramp"), "ramp"),
    )


def recorded(network: Any) -> Record | None:
    """The record in a network's yaml, if there is one and it lists sites."""
    found = read(network) if has_record(network) else None
    return found if isinstance(found, Record) else None


def write(network: Any, record: Record) -> None:
    """Record an injection. The yaml gets replaced, since trainers hand one dict to several networks."""
    network.yaml = {**network.yaml, KEY: record.to_dict()}


def erase(network: Any) -> None:
    """Take the record out again."""
    if has_record(network):
        network.yaml = {key: value for key, value in network.yaml.items() if key != KEY}


Key = tuple[str, tuple[tuple[str, Any], ...], float]


def key_of(site: SiteRecord) -> Key:
    """What two records have in common if they are of the same site; shapes depend on the example."""
    return site["child"], tuple(sorted(site["edit"].items())), site["e_lambda"]


def missing_sites(network: nn.Module, wanted: tuple[SiteRecord, ...]) -> list[SiteRecord]:
    """The sites that the network should have and has not.

    A site whose module is gone does not count: `fuse()` drops the branch of a head that only training needs.
    """
    there = {key_of(entry.site) for entry in attended_in(network) if entry.attention is not None}
    modules = dict(network.named_modules())
    return [site for site in wanted if key_of(site) not in there and site["edit"]["module"] in modules]


def _read_site(data: Any) -> tuple[SiteRecord, tuple[float, float]]:
    if not isinstance(data, Mapping):
        raise FileError(f"a recorded SimAM site is not a site: {data!r:.120}")
    site = {name: value for name, value in data.items() if name not in ("strength", "gain")}
    strength, gain = data.get("strength", 1.0), data.get("gain", 1.0)
    for name, value, most in (("strength", strength, 1.0), ("gain", gain, math.inf)):
        if type(value) is not float or not 0.0 <= value <= most or not math.isfinite(value):
            raise FileError(f"a recorded SimAM site has an invalid {name}: {value!r:.120}")
    return site, (strength, gain)  # type: ignore[return-value]


def _mapping(value: Any, name: str) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, Mapping):
        raise FileError(f"model.yaml[{KEY!r}] has an invalid {name}: {value!r:.120}")
    return dict(value) if value is not None else None
