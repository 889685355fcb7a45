"""`check` and `show`: what SimAM a file contains, and whether it is live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from simam_inject.cli.options import FileOptions
from simam_inject.cli.program import Outcome, Step
from simam_inject.errors import FileError, plural
from simam_inject.zoo.yolo import check_installed

if TYPE_CHECKING:
    from simam_inject.integrations.ultralytics.checking import Checkup
    from simam_inject.planning.tables import Table


def show(options: FileOptions, _step: Step) -> Outcome:
    """Show what a .safetensors file contains besides its weights: sites, recipes, versions. Needs no model."""
    from simam_inject.persist import read
    from simam_inject.planning.tables import sites_table

    found = read(options.file)
    sites, lambdas = found.insertions, {site.e_lambda for site in found.insertions}
    names = [str(recipe.get("name", "a recipe without name")) for recipe in found.recipes]
    parts: list[Table | str] = [
        f"{options.file} ({', '.join(names) or 'no recipe'})",
        sites_table(sites).without("e_lambda" if len(lambdas) == 1 else ""),
        f"{plural(len(sites), 'site')}; tensor names and shapes are as saved",
        f"written with {', '.join(f'{name} {version}' for name, version in found.versions.items())}",
        *(f"recipe: {json.dumps(recipe)}" for recipe in found.recipes),
    ]
    about = {"recipes": list(found.recipes), "versions": dict(found.versions)}
    return Outcome(parts, {"path": str(options.file), "sites": [asdict(site) for site in sites], **about})


def check(options: FileOptions, step: Step) -> Outcome:
    """Check that SimAM is live in a file, and in the .onnx of the same name beside a checkpoint. Exits 1 if not."""
    file = options.file
    if file.suffix not in (".safetensors", ".pt"):
        raise FileError(
            f"{file}: expected a .pt of ultralytics or a .safetensors of simam_inject.persist.save; an exported file "
            f"is checked against its model with simam_inject.export.prove({str(file)!r}, model)"
        )
    if file.suffix == ".safetensors":
        shown = show(options, step)
        ok = bool(shown.data["sites"])
        advice = "to verify it: load it into its model with simam_inject.persist.load, and call verify(model)"
        return Outcome([*shown.parts, advice], shown.data | {"ok": ok}, ok=ok)
    check_installed(str(file))
    from simam_inject.integrations.ultralytics.checking import check_checkpoint

    step("checking")
    found = check_checkpoint(file)
    return Outcome(_render(found), {**asdict(found), "path": str(file), "ok": not found.faults}, ok=not found.faults)


def _render(found: Checkup) -> Iterator[Table | str]:
    from simam_inject.planning.tables import Table

    yield f"{found.path} ({found.network}, {found.recipe or 'no record'})"
    rows = []
    for site in found.sites:
        words = ["yes" if fact else "NO" for fact in (site.planned, site.present)]
        rows.append([site.path or "(model)", f"{site.e_lambda:g}", *words, str(site.runs), str(site.runs_fused)])
    if rows:
        yield Table(["site", "e_lambda", "planned", "present", "runs", "runs fused"], rows)
        yield f"{sum(site.is_live for site in found.sites)} of {len(found.sites)} sites are live"
    if found.exported is not None:
        wanted = sum(site.runs_fused for site in found.sites)
        yield f"{found.path.stem}.onnx: {found.exported} of {wanted} sites are in its graph"
    yield from (f"wrong: {fault}" for fault in found.faults)
    if not all(site.present for site in found.sites) or not found.sites:
        yield "to add SimAM: inject(YOLO(...), recipe), then train; see docs/yolo.md"
