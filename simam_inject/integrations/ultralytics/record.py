"""The record of an injection in `model.yaml["simam"]`: JSON types only, and checked before anything is done with them.

    {"version": 1, "recipe": {...}, "sites": [{"path": "model.2", "position": "after", "reader": None, ...}, ...]}

A YAML file of the user's own may have a recipe, the name of a shipped one or a selector in its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simam_inject.errors import FileError
from simam_inject.planning.records import Insertion

KEY = "simam"
_PATH = re.compile(r"[A-Za-z0-9_.\[\]]{1,300}")
_MAX_SITES = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """What was asked for, and where it went."""

    recipe: dict[str, Any]
    """The resolved recipe of the last injection, as JSON types."""
    sites: tuple[Insertion, ...]
    """Everything that is in the network."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        sites = [
            {
                "path": site.path,
                "position": site.position,
                "reader": site.reader,
                "e_lambda": float(site.e_lambda),
                "rule": site.rule,
                "scope": site.scope,
            }
            for site in self.sites
        ]
        return {"version": 1, "recipe": self.recipe, "sites": sites}


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
    sites, recipe = found["sites"], found.get("recipe")
    if found.get("version") != 1 or not isinstance(recipe, Mapping):
        raise FileError(f"model.yaml[{KEY!r}] is no record of version 1: its version is {found.get('version')!r}")
    if not isinstance(sites, list) or not 0 < len(sites) <= _MAX_SITES:
        raise FileError(f"model.yaml[{KEY!r}] has no list of sites")
    return Record(dict(recipe), tuple(_site(item) for item in sites))


def write(network: Any, record: Record) -> None:
    """Record an injection. The yaml gets replaced, since trainers hand one dict to several networks."""
    network.yaml = {**network.yaml, KEY: record.to_dict()}


def erase(network: Any) -> None:
    """Take the record out again."""
    if has_record(network):
        network.yaml = {key: value for key, value in network.yaml.items() if key != KEY}


def _site(data: Any) -> Insertion:
    if not isinstance(data, Mapping):
        raise FileError(f"a recorded SimAM site is not a site: {data!r:.120}")
    checks = {
        "path": _is_path(data.get("path")),
        "position": data.get("position") in ("after", "before"),
        "reader": data.get("reader") is None or _is_path(data["reader"]),
        "e_lambda": type(data.get("e_lambda")) is float and math.isfinite(data["e_lambda"]) and data["e_lambda"] > 0,
        "rule": type(data.get("rule")) is int,
        "scope": data.get("scope") == "" or _is_path(data.get("scope")),
    }
    wrong = [name for name, is_right in checks.items() if not is_right]
    if wrong:
        raise FileError(f"a recorded SimAM site has an invalid {wrong[0]}: {data.get(wrong[0])!r:.120}")
    return Insertion(
        path=data["path"],
        position=data["position"],
        shape=(),
        e_lambda=data["e_lambda"],
        rule=data["rule"],
        reader=data["reader"],
        scope=data["scope"],
    )


def _is_path(text: Any) -> bool:
    return isinstance(text, str) and _PATH.fullmatch(text) is not None
