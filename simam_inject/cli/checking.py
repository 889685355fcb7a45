"""`simam-inject check best.pt`: is the attention live in a YOLO checkpoint, and in the file exported from it?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from simam_inject.cli.working import DONE, NO_EFFECT, show, working

if TYPE_CHECKING:
    from rich.console import RenderableType

    from simam_inject.integrations.ultralytics.checking import CheckedSite, Checkup


def check_file(path: str, *, as_json: bool) -> None:
    """Report what became of every site.

    Raises:
        typer.Exit: Always: 0 if every site is live, 1 if one is not or there is none, 2 if the file cannot be read.
    """
    with working(steps=2, quiet=as_json) as step:
        step(f"loading {path}")
        _require_ultralytics()
        from simam_inject.integrations.ultralytics.checking import check_checkpoint

        step("running it as trained, fused and exported")
        checkup = check_checkpoint(Path(path))
    if as_json:
        typer.echo(json.dumps(_as_dict(checkup), indent=2))
    else:
        show(_render(checkup))
    raise typer.Exit(NO_EFFECT if checkup.faults else DONE)


def _require_ultralytics() -> None:
    from importlib.util import find_spec

    from simam_inject.errors import ModelError

    if find_spec("ultralytics") is None:
        raise ModelError("checkpoints of YOLO need ultralytics: pip install 'simam_inject[ultralytics]'")


def _as_dict(checkup: Checkup) -> dict[str, Any]:
    data = asdict(checkup)
    data["path"] = str(checkup.path)
    data["exports"] = [{**export, "path": str(export["path"])} for export in data["exports"]]
    return {**data, "ok": not checkup.faults}


def _render(checkup: Checkup) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{checkup.path} ({checkup.network}, {checkup.recipe or 'no record'})", "bold")]
    if checkup.sites:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column in ("site", "e_lambda", "planned", "present", "run as trained", "run fused"):
            table.add_column(column, overflow="fold")
        for site in checkup.sites:
            table.add_row(*_row(site))
        parts.append(table)
        parts.append(Text(f"{sum(site.is_live for site in checkup.sites)} of {len(checkup.sites)} sites are live"))
    for export in checkup.exports:
        told = f"{export.path.name}: {export.live} of {export.wanted} sites are in its graph"
        if export.difference is not None:
            told += f"; output {export.difference:.1e} from the network's, {export.effect:.1e} without SimAM"
        parts.append(Text(told))
    parts += [Text(f"wrong: {fault}", "red") for fault in checkup.faults]
    if any(not site.present for site in checkup.sites) or not checkup.sites:
        parts.append(Text("put it there: inject(YOLO(...), recipe), then train; see docs/yolo.md"))
    return Group(*parts)


def _row(site: CheckedSite) -> tuple[str, ...]:
    return (
        site.path,
        f"{site.e_lambda:g}",
        "yes" if site.planned else "no",
        "yes" if site.present else "no",
        str(site.runs),
        str(site.runs_fused),
    )
