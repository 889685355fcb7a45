"""The record of an injection in `model.yaml["simam"]`: what `simam_inject.persist.record.Record` reads.

    {"format": 2, "recipes": [...], "sites": [{"path": "model.2", ...}, ...], "settings": [[1.0, 1.0], ...], ...}

A YAML file of the user's own may have a recipe, the name of a shipped one or a selector in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from simam_inject.editing.attach import attended_in
from simam_inject.editing.checking import SiteRecord
from simam_inject.errors import FileError
from simam_inject.persist.record import Record

KEY, RAMP = "simam", "simam_ramp"
"""Keys in `model.yaml`: the record; epochs and first strength of a ramp that a resumed training goes on with."""


def networks_in(model: nn.Module) -> list[nn.Module]:
    """Every network that may be the injected one: it may be wrapped (DDP, compile), or a student beside its teacher."""
    return [part for part in model.modules() if isinstance(part.__dict__.get("yaml"), Mapping)]


def has_record(network: Any) -> bool:
    """True if the network's yaml asks for SimAM, in whatever form."""
    table = getattr(network, "yaml", None)
    return isinstance(table, Mapping) and table.get(KEY) is not None


def read(network: Any) -> Record | str | Mapping[str, Any]:
    """The record in a network's yaml; a recipe in the user's own words if it is one.

    Raises:
        FileError: it is neither.
    """
    found, name = network.yaml[KEY], f"model.yaml[{KEY!r}]"
    if isinstance(found, str):
        if found.endswith((".yaml", ".yml")) or "/" in found or "\\" in found:
            raise FileError(f"{name} names a file, {found!r}; write the recipe itself, or the name of a shipped recipe")
        return found
    if not isinstance(found, Mapping):
        raise FileError(f"{name} is a {type(found).__name__}; expected a recipe or its name")
    return Record.read(found, name) if "sites" in found else found


def recorded(network: Any) -> Record | None:
    """The record in a network's yaml, if there is one and it lists sites."""
    found = read(network) if has_record(network) else None
    return found if isinstance(found, Record) else None


def write(network: Any) -> Record:
    """Record what is in a network now, and the recorded sites of branches that `fuse()` took out of it.

    The yaml gets replaced, since trainers hand one dict to several networks.

    Raises:
        FileError: a site holds another attention module than SimAM, which a record cannot rebuild.
    """
    now, before = Record.of(network).model_dump(mode="json"), recorded(network)
    if before is not None:
        there, modules = {key_of(site) for site in now["sites"]}, dict(network.named_modules())
        for site, setting in zip(before.sites, before.settings, strict=True):
            if key_of(site) not in there and site["edit"]["module"] not in modules:
                now["sites"].append(site)
                now["settings"].append(list(setting))
    network.yaml = {**network.yaml, KEY: now}
    return Record.read(now)


def erase(network: Any) -> None:
    """Take the record out again."""
    if has_record(network) or RAMP in getattr(network, "yaml", {}):
        network.yaml = {key: value for key, value in network.yaml.items() if key not in (KEY, RAMP)}


def write_ramp(network: Any, epochs: float, start: float) -> None:
    """Record a ramp."""
    network.yaml = {**network.yaml, RAMP: {"epochs": epochs, "start": start}}


def take_ramp(network: Any) -> tuple[float, float] | None:
    """Epochs and first strength of the recorded ramp, which is taken out of the record.

    Raises:
        FileError: it is no ramp.
    """
    if RAMP not in network.yaml:
        return None
    network.yaml = dict(network.yaml)
    found = network.yaml.pop(RAMP)
    epochs, start = (found.get("epochs"), found.get("start")) if isinstance(found, Mapping) else (None, None)
    if type(epochs) is not float or type(start) is not float or not epochs > 0 or not 0.0 <= start <= 1.0:
        raise FileError(f"model.yaml[{RAMP!r}] is not a ramp: {found!r:.120}")
    return epochs, start


Key = tuple[str, tuple[tuple[str, Any], ...], float]


def key_of(site: SiteRecord) -> Key:
    """What two records have in common if they are of the same site; shapes depend on the example."""
    return site["child"], tuple(sorted(site["edit"].items())), site["e_lambda"]


def missing_sites(network: nn.Module, wanted: Iterable[SiteRecord]) -> list[SiteRecord]:
    """The sites that the network should have and has not.

    A site whose module is gone does not count: `fuse()` drops the branch of a head that only training needs.
    """
    there = {key_of(entry.site) for entry in attended_in(network) if entry.attention is not None}
    modules = dict(network.named_modules())
    return [site for site in wanted if key_of(site) not in there and site["edit"]["module"] in modules]


def names_of(record: Record) -> str:
    """Names of the recipes, for people."""
    return ", ".join(str(recipe.get("name") or "unnamed") for recipe in record.recipes)
