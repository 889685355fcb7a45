"""Everything that a network needs to be injected again, as plain data that a library's own files can carry."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import attach, attended_in
from simam_inject.editing.checking import SiteRecord, checked_example, checked_recipes, checked_sites
from simam_inject.editing.presence import presence_of
from simam_inject.errors import FileError, ModelError

VERSION = 2
_MAX_SITES = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """Sites, their settings, and what they came from."""

    sites: tuple[SiteRecord, ...]
    settings: tuple[tuple[float, float], ...]
    """Strength and gain of each site."""
    recipes: tuple[dict[str, Any], ...]
    """The resolved recipes."""
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
        return dict(json.loads(json.dumps(data | ({"ramp": self.ramp} if self.ramp else {}))))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Inverse of `to_dict`.

        Raises:
            FileError: it is not a record, or of another version, or a field of it is not valid.
        """
        if data.get("version") != VERSION:
            raise FileError(f"a SimAM record of version {data.get('version')!r:.40}; this package reads {VERSION}")
        sites = data.get("sites")
        if not isinstance(sites, list) or not 0 < len(sites) <= _MAX_SITES:
            raise FileError("a SimAM record has no list of sites")
        settings = tuple(_settings(site) for site in sites)
        plain = [{name: value for name, value in site.items() if name not in ("strength", "gain")} for site in sites]
        recipes, example = checked_recipes(data.get("recipes")), checked_example(data.get("example"))
        return cls(tuple(checked_sites(plain)), settings, tuple(recipes), example, _ramp(data.get("ramp")))


def record_of(network: nn.Module) -> Record:
    """What is in the network now.

    Raises:
        ModelError: a site holds another attention module than SimAM, which a record cannot rebuild.
    """
    there, presence = list(attended_in(network)), presence_of(network)
    for entry in there:
        if not isinstance(entry.attention, SimAM):
            raise ModelError(
                f"{entry.site['path']} holds a {type(entry.attention).__name__}; networks are built anew from a "
                "record, and only SimAM can be put back. Train this network with a loop of your own"
            )
    settings = tuple((entry.insertion.strength, entry.insertion.gain) for entry in there)
    recipes = tuple(presence.recipes) if presence else ()
    return Record(tuple(entry.site for entry in there), settings, recipes, presence.example if presence else None)


def apply_record(network: nn.Module, record: Record) -> None:
    """Put the recorded sites into a network, instead of those that it has. Nothing is run, and no random number drawn.

    Raises:
        ModelError: the network has not the modules that the record names.
    """
    attach(network, record.sites, recipes=list(record.recipes), example=record.example, settings=record.settings)


Key = tuple[str, tuple[tuple[str, Any], ...], float]


def key_of(site: SiteRecord) -> Key:
    """What two records have in common if they are of the same site; shapes depend on the example."""
    return site["child"], tuple(sorted(site["edit"].items())), site["e_lambda"]


def missing_sites(network: nn.Module, wanted: tuple[SiteRecord, ...]) -> list[SiteRecord]:
    """The sites that the network should have and has not.

    A site whose module is gone does not count: a library drops the branch of a head that only training needs.
    """
    there = {key_of(entry.site) for entry in attended_in(network) if entry.attention is not None}
    modules = dict(network.named_modules())
    return [site for site in wanted if key_of(site) not in there and site["edit"]["module"] in modules]


def _settings(site: Any) -> tuple[float, float]:
    if not isinstance(site, Mapping):
        raise FileError(f"a recorded SimAM site is not a site: {site!r:.120}")
    strength, gain = site.get("strength", 1.0), site.get("gain", 1.0)
    for name, value, most in (("strength", strength, 1.0), ("gain", gain, math.inf)):
        if type(value) is not float or not 0.0 <= value <= most or not math.isfinite(value):
            raise FileError(f"a recorded SimAM site has an invalid {name}: {value!r:.120}")
    return strength, gain


def _ramp(found: Any) -> dict[str, float] | None:
    if found is None:
        return None
    epochs, start = (found.get("epochs"), found.get("start")) if isinstance(found, Mapping) else (None, None)
    if type(epochs) is not float or type(start) is not float or not epochs > 0 or not 0.0 <= start <= 1.0:
        raise FileError(f"a SimAM record has an invalid ramp: {found!r:.120}")
    return {"epochs": epochs, "start": start}
