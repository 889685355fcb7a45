"""The record of an injection in `model.yaml["simam"]`: what `simam_inject.persist.record.Record` reads.

    {"format": 3, "recipes": [...], "sites": [{"path": "model.2", ...}, ...], ...}

A YAML file of the user's own may have a recipe, the name of a shipped one or a selector in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from simam_inject.editing.attach import attended_in
from simam_inject.errors import FileError, ModelError, a_type
from simam_inject.persist.record import Record

KEY, RAMP = "simam", "simam_ramp"
"""Keys in `model.yaml`: the record; epochs and first strength of a ramp that a resumed training goes on with. A YOLO
object has the ramp of its next training under the second name, too."""


def read(network: Any) -> Record | str | Mapping[str, Any] | None:
    """What a network's yaml says of SimAM: a record, a recipe in the user's own words, or None; or a `FileError`."""
    table, name = getattr(network, "yaml", None), f"model.yaml[{KEY!r}]"
    found = table.get(KEY) if isinstance(table, Mapping) else None
    if isinstance(found, Mapping):
        return Record.read(found, name) if "sites" in found else found
    if isinstance(found, str) and (found.endswith((".yaml", ".yml")) or "/" in found or "\\" in found):
        raise FileError(f"{name} names a file, {found!r}; write the recipe itself, or the name of a shipped recipe")
    if found is None or isinstance(found, str):
        return found
    raise FileError(f"{name} is {a_type(found)}; expected a recipe or its name")


def recorded(network: Any) -> Record | None:
    """The record in a network's yaml, if there is one."""
    found = read(network)
    return found if isinstance(found, Record) else None


def check_applied(network: nn.Module) -> None:
    """Refuse a network whose yaml has a recipe in the user's own words and that has no SimAM."""
    if not (read(network) is None or recorded(network) or any(attended_in(network))):
        raise ModelError(
            f"the {KEY!r} section of this model's yaml was not applied: put `import "
            "simam_inject.integrations.ultralytics` before YOLO(...), or call eject(model) to remove the section"
        )


def write(model: Any) -> Record:
    """Record what is in a network now, and the recorded sites of branches that `fuse()` removed; return the record.

    The yaml is replaced by another dict, since several networks of a trainer may have the same one.
    """
    network, *around = _networks_in(model)
    now, before, modules = Record.of(network), recorded(network), dict(network.named_modules())
    gone = [site for site in before.sites if site.edit.module not in modules] if before else []
    record = now.model_copy(update={"sites": [*now.sites, *gone]})
    if (table := record.model_dump(mode="json")) != network.yaml.get(KEY):
        network.yaml = {**network.yaml, KEY: table}
    for part in around:
        part.yaml = network.yaml
    return record


def erase(model: Any) -> None:
    """Take the record out again."""
    for part in _networks_in(model):
        if isinstance(getattr(part, "yaml", None), Mapping):
            part.yaml = {key: value for key, value in part.yaml.items() if key not in (KEY, RAMP)}


def network_in(model: Any) -> Any:
    """The network of a trainer's model, which may be wrapped (DDP, compile); not the teacher of a distillation."""
    return _networks_in(model)[0]


def _networks_in(model: Any) -> list[Any]:
    """The network, and a distillation around it, whose yaml builds the network when a training is resumed."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    found = [part for part in parts if isinstance(vars(part).get("yaml"), Mapping)] or [model]
    network = getattr(found[0], "student_model", next(filter(recorded, found), found[0]))
    return [network, *(part for part in found if getattr(part, "student_model", None) is network)]


def lost_sites(network: nn.Module, record: Record) -> str:
    """What a network lacks of the record, after its name: `lacks 2 of 7 sites, ...`; "" for nothing.

    A site whose module is gone does not count: `fuse()` drops the branch of a head that only training needs.
    """
    there = {entry.insertion.module for entry in attended_in(network) if entry.attention is not None}
    holders = {path for path, _ in network.named_modules()}
    wanted = (site for site in record.sites if site.module.rpartition(".")[0] in holders)
    lost = [site.path for site in wanted if site.module not in there]
    return f"lacks {len(lost)} of {len(record.sites)} sites, first {lost[0]}" if lost else ""


def names_of(record: Record) -> str:
    """Names of the recipes, for people; sites of a slice, `yolo.model.model[:10]`, have none."""
    return ", ".join(str(recipe.get("name") or "unnamed") for recipe in record.recipes) or "unnamed"
