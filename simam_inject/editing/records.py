"""Between the record that hooks, pickles and files hold of a site, and the insertion that a user sees."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from torch import nn

from simam_inject.editing.checking import SiteRecord
from simam_inject.planning.records import Edit, Input, Insertion, Output, Rewritten
from simam_inject.source import Expression


def write_edit(edit: Edit) -> dict[str, Any]:
    """The edit as plain data."""
    if isinstance(edit, Output):
        return {"kind": "output", "module": edit.module, "key": edit.key}
    if isinstance(edit, Input):
        return {"kind": "input", "module": edit.module, "argument": edit.argument, "key": edit.key}
    return {"kind": "rewritten", "module": edit.owner, "value": edit.value}


def read_edit(data: dict[str, Any]) -> Edit:
    """Inverse of `write_edit`.

    Raises:
        ValueError: not an edit.
    """
    kind = data.get("kind")
    if kind == "output":
        return Output(data["module"], data.get("key"))
    if kind == "input":
        return Input(data["module"], data["argument"], data.get("key"))
    if kind == "rewritten":
        return Rewritten(data["module"], data["value"])
    raise ValueError(f"not an edit: {data!r:.80}")


def seen_from(site: SiteRecord, holder: str) -> SiteRecord:
    """The record with paths as another root sees them: a part of the network that was injected, or a whole around it.

    Args:
        holder: path of the holder from that root.
    """
    at = site["edit"]["module"]
    moved: dict[str, Any] = {**site, "edit": {**site["edit"], "module": holder}, "witness": None}
    if not at or holder.endswith(f".{at}"):  # a part was injected, and the network around it is looked at
        prefix = holder.removesuffix(at).removesuffix(".")
        moved |= {name: None if path is None else f"{prefix}.{path}".removesuffix(".")
                  for name, path in _paths(site, "witness").items()}  # fmt: skip
    elif not holder or at.endswith(f".{holder}"):  # the network was injected, and a part of it is looked at
        prefix = at.removesuffix(holder).removesuffix(".")
        moved |= {name: None if path is None else path.removeprefix(prefix).removeprefix(".")
                  for name, path in _paths(site).items()}  # fmt: skip
    return cast(SiteRecord, moved)


def _paths(site: SiteRecord, *more: str) -> dict[str, str | None]:
    """The fields of a site that are paths of the network."""
    return {name: cast(dict[str, Any], site)[name] for name in ("path", "reader", *more)}


def insertion_of(site: SiteRecord, attention: nn.Module | None) -> Insertion:
    """The site as the plan and `injected` show it.

    Args:
        attention: the module at the site, for what is set on it now.
    """
    edit = read_edit(site["edit"])
    at, where = edit.module, site["expression"]
    return Insertion(
        path=site["path"],
        position=site["position"],
        shape=tuple(site["shape"]),
        e_lambda=site["e_lambda"],
        rule=site["rule"],
        edit=edit,
        module=f"{at}.{site['child']}" if at else site["child"],
        reader=site["reader"],
        channel_dim=site["channel_dim"],
        axes=site["axes"],
        axes_measured=site["axes_measured"],
        dtype=site["dtype"],
        reduction=site["reduction"],
        runs=site["runs"],
        strength=getattr(attention, "strength", 1.0),
        gain=getattr(attention, "gain", 1.0),
        note=site["note"],
        witness=site["witness"],
        expression=None if where is None else Expression(where["method"], where["digest"], tuple(where["span"])),
    )


def record_of(insertion: Insertion) -> SiteRecord:
    """The site as the hook that runs it keeps it."""
    return SiteRecord(
        child=insertion.module.rpartition(".")[2],
        edit=write_edit(insertion.edit),
        path=insertion.path,
        position=insertion.position,
        reader=insertion.reader,
        rule=insertion.rule,
        e_lambda=insertion.e_lambda,
        shape=list(insertion.shape),
        channel_dim=insertion.channel_dim,
        axes=insertion.axes,
        axes_measured=insertion.axes_measured,
        dtype=insertion.dtype,
        reduction=insertion.reduction,
        runs=insertion.runs,
        note=insertion.note,
        witness=insertion.witness,
        expression=None if insertion.expression is None else asdict(insertion.expression),
    )
