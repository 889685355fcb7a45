"""`check` and `show`: is SimAM live in a file, and what does a file hold beside its weights?"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from simam_inject.cli.working import DONE, NO_EFFECT, Step, show, working
from simam_inject.errors import FileError, ModelError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from simam_inject.integrations.ultralytics.checking import CheckedSite, Checkup
    from simam_inject.persist import Manifest
    from simam_inject.planning.records import Verification

_EXPORTS = (".onnx", ".pt2", ".torchscript")


def check_file(path: str, *, model: str | None, as_json: bool) -> None:
    """Report what became of every site.

    Raises:
        typer.Exit: Always: 0 if every site is live, 1 if one is not or there is none, 2 if the file cannot be read.
    """
    file = Path(path)
    with working(steps=2, as_json=as_json) as step:
        _refuse_other_files(file)
        if file.suffix == ".safetensors":
            data, report, ok = _check_saved(file, model, step)
        else:
            data, report, ok = _check_checkpoint(file, step)
    if as_json:
        typer.echo(json.dumps({**data, "ok": ok}, indent=2))
    else:
        show(report)
    raise typer.Exit(DONE if ok else NO_EFFECT)


def show_file(path: str, *, as_json: bool) -> None:
    """Report what a file of `simam_inject.persist.save` holds beside its weights."""
    with working(steps=1, as_json=as_json) as step:
        step(f"reading {path}")
        if Path(path).suffix != ".safetensors":
            raise FileError(f"{path}: only .safetensors files can be shown; simam-inject check reads YOLO checkpoints")
        from simam_inject.persist import read

        manifest = read(path)
    if as_json:
        typer.echo(json.dumps(_manifest_as_dict(path, manifest), indent=2))
    else:
        show(_render_saved(path, manifest, in_full=True))


def _refuse_other_files(file: Path) -> None:
    if not file.is_file():
        raise FileError(f"no such file: {str(file)!r}")
    if file.suffix in _EXPORTS:
        raise FileError(
            f"{file}: check an exported file against its model with simam_inject.export.prove({str(file)!r}, model)"
        )
    if file.suffix not in (".pt", ".safetensors"):
        raise FileError(f"{file}: expected a .pt of ultralytics or a .safetensors of simam_inject.persist.save")


def _check_saved(file: Path, model: str | None, step: Step) -> tuple[dict[str, Any], RenderableType, bool]:
    """A file of ours agrees with itself; loaded into its model, it is verified."""
    from simam_inject.persist import load, read

    step(f"reading {file}")
    manifest = read(file)
    verification = None
    if model is not None and manifest.insertions:
        from simam_inject.api import verify
        from simam_inject.cli.preparing import check_model_name
        from simam_inject.zoo import build

        check_model_name(model)
        step(f"loading it into {model} and verifying")
        verification = verify(load(file, build(model).model))
    ok = bool(manifest.insertions) and (verification is None or verification.ok)
    data = _manifest_as_dict(str(file), manifest)
    data["verification"] = None if verification is None else asdict(verification)
    return data, _render_saved(str(file), manifest, verification), ok


def _manifest_as_dict(path: str, manifest: Manifest) -> dict[str, Any]:
    sites = [{**asdict(site), "module": site.module} for site in manifest.insertions]
    return {"path": path, "sites": sites, "recipes": _recipes(manifest), "versions": dict(manifest.versions)}


def _recipes(manifest: Manifest) -> list[dict[str, Any]]:
    return [dict(recipe) for recipe in manifest.recipes]


def _render_saved(
    path: str, manifest: Manifest, verification: Verification | None = None, *, in_full: bool = False
) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from simam_inject.reporting.formats import format_count
    from simam_inject.reporting.plans import sites_table, verification_lines

    names = ", ".join(str(recipe.get("name") or "recipe") for recipe in _recipes(manifest)) or "no recipe"
    parts: list[RenderableType] = [Text(f"{path} ({names})", "bold")]
    if manifest.insertions:
        parts.append(sites_table(manifest.insertions))
    parts.append(Text(f"{format_count(len(manifest.insertions), 'site')}; tensor names and shapes are as saved"))
    parts.append(
        Text("written with " + ", ".join(f"{name} {version}" for name, version in dict(manifest.versions).items()))
    )
    if in_full:
        parts += [Text(f"recipe: {json.dumps(recipe)}", overflow="fold") for recipe in _recipes(manifest)]
    if verification is not None:
        parts.extend(verification_lines(verification, verbose=False))
    elif not in_full and manifest.insertions:
        parts.append(Text("to verify it in its model: add --model MODEL"))
    return Group(*parts)


def _check_checkpoint(file: Path, step: Step) -> tuple[dict[str, Any], RenderableType, bool]:
    step(f"loading {file}")
    if find_spec("ultralytics") is None:
        raise ModelError("YOLO checkpoints need ultralytics: pip install 'simam_inject[ultralytics]'")
    from simam_inject.integrations.ultralytics.checking import check_checkpoint

    step("running it as trained, fused and exported")
    checkup = check_checkpoint(file)
    data = asdict(checkup)
    data["path"] = str(checkup.path)
    data["exports"] = [{**export, "path": str(export["path"])} for export in data["exports"]]
    return data, _render_checkup(checkup), not checkup.faults


def _render_checkup(checkup: Checkup) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{checkup.path} ({checkup.network}, {checkup.recipe or 'no record'})", "bold")]
    if checkup.sites:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for column in ("site", "e_lambda", "planned", "present", "runs", "runs fused"):
            table.add_column(column, overflow="fold")
        for site in checkup.sites:
            table.add_row(*_row(site))
        parts.append(table)
        parts.append(Text(f"{sum(site.is_live for site in checkup.sites)} of {len(checkup.sites)} sites are live"))
    for export in checkup.exports:
        line = f"{export.path.name}: {export.live} of {export.wanted} sites are in its graph"
        if export.difference is not None:
            line += f"; output {export.difference:.1e} from the network's, {export.effect:.1e} without SimAM"
        parts.append(Text(line))
    parts += [Text(f"wrong: {fault}", "red") for fault in checkup.faults]
    if any(not site.present for site in checkup.sites) or not checkup.sites:
        parts.append(Text("to add SimAM: inject(YOLO(...), recipe), then train; see docs/yolo.md"))
    return Group(*parts)


def _row(site: CheckedSite) -> tuple[str, ...]:
    planned, present = ("yes" if value else "no" for value in (site.planned, site.present))
    return site.path, f"{site.e_lambda:g}", planned, present, str(site.runs), str(site.runs_fused)
