"""Between the record that hooks, pickles and files hold of a site, and the insertion that a user sees."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, cast

from torch import nn

from simam_inject.editing.checking import SiteRecord
from simam_inject.planning.records import Edit, Input, Insertion, Output, Rewritten, write_edit
from simam_inject.source import Expression

_SHARED = {field.name for field in fields(Insertion)} & set(SiteRecord.__annotations__) - {
    "edit",
    "shape",
    "expression",
}
"""Fields that an insertion and its record have in common."""


def read_edit(data: dict[str, Any]) -> Edit:
    """Inverse of `write_edit`."""
    if data["kind"] == "output":
        return Output(data["module"], data["key"])
    if data["kind"] == "input":
        return Input(data["module"], data["argument"], data["key"])
    return Rewritten(data["module"], data["value"])


def seen_from(site: SiteRecord, holder: str) -> SiteRecord:
    """The record with paths as another root sees them: a part of the network that was injected, or a whole around it.

    Args:
        holder: path of the holder from that root.
    """
    at = site["edit"]["module"]
    moved: dict[str, Any] = {**site, "edit": {**site["edit"], "module": holder}, "witness": None}
    if not at or holder.endswith(f".{at}"):  # a part was injected, and the network around it is looked at
        prefix = holder.removesuffix(at).removesuffix(".")
        moved |= {name: f"{prefix}.{path}".removesuffix(".") for name, path in _paths(site, "witness")}
    elif not holder or at.endswith(f".{holder}"):  # the network was injected, and a part of it is looked at
        prefix = at.removesuffix(holder).removesuffix(".")
        moved |= {name: path.removeprefix(prefix).removeprefix(".") for name, path in _paths(site)}
    return cast(SiteRecord, moved)


def _paths(site: SiteRecord, *more: str) -> list[tuple[str, str]]:
    """The fields of a site that are paths of the network."""
    values = cast(dict[str, Any], site)
    return [(name, values[name]) for name in ("path", "reader", *more) if values[name] is not None]


def insertion_of(site: SiteRecord, attention: nn.Module | None) -> Insertion:
    """The site as the plan and `injected` show it.

    Args:
        attention: the module at the site, for what is set on it now.
    """
    shared = {name: value for name, value in site.items() if name in _SHARED}
    edit, where = read_edit(site["edit"]), site["expression"]
    return Insertion(
        **cast(dict[str, Any], shared),
        edit=edit,
        shape=tuple(site["shape"]),
        module=f"{edit.module}.{site['child']}".lstrip("."),
        strength=getattr(attention, "strength", 1.0),
        gain=getattr(attention, "gain", 1.0),
        expression=None if where is None else Expression(where["method"], where["digest"], tuple(where["span"])),
    )


def record_of(insertion: Insertion) -> SiteRecord:
    """The site as the hook that runs it keeps it."""
    own = {name: getattr(insertion, name) for name in _SHARED} | {"shape": list(insertion.shape)}
    own |= {"child": insertion.module.rpartition(".")[2], "edit": write_edit(insertion.edit)}
    where = insertion.expression
    return cast(SiteRecord, own | {"expression": None if where is None else asdict(where)})
