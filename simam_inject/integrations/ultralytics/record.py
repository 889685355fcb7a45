"""The record of an injection in `model.yaml["simam"]`.

    {"version": 2, "recipes": [...], "sites": [{"path": "model.2", "strength": 1.0, ...}, ...], "example": {...}}

A YAML file of the user's own may have a recipe, the name of a shipped one or a selector in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simam_inject.errors import FileError
from simam_inject.integrations.record import Record

KEY = "simam"


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
    return Record.from_dict(found) if "sites" in found else found


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
