"""`check` and `show`: is SimAM live in a file, and what does the file contain besides its weights?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from simam_inject.cli.options import CheckOptions, FileOptions
from simam_inject.cli.preparing import check_model_name
from simam_inject.cli.program import Report, Step
from simam_inject.errors import FileError
from simam_inject.zoo import build
from simam_inject.zoo.yolo import check_installed

if TYPE_CHECKING:
    from rich.console import RenderableType

    from simam_inject.integrations.ultralytics.checking import Checkup
    from simam_inject.persist import Manifest


def check(options: CheckOptions, step: Step) -> Report:
    """Check that SimAM is live in a file, and in the .onnx of the same name beside a checkpoint. Exits 1 if not."""
    file = options.file
    step(f"reading {file}", of=2)
    if file.suffix == ".safetensors":
        return _check_saved(options, step)
    if file.suffix == ".pt":
        return _check_checkpoint(file, step)
    raise FileError(
        f"{file}: expected a .pt of ultralytics or a .safetensors of simam_inject.persist.save; an exported file is "
        f"checked against its model with simam_inject.export.prove({str(file)!r}, model)"
    )


def show(options: FileOptions, step: Step) -> Report:
    """Show what a .safetensors file contains besides its weights: sites, recipes, versions. Needs no model."""
    from simam_inject.persist import read

    step(f"reading {options.file}", of=1)
    return _describe(options.file, read(options.file))


def _describe(file: Path, manifest: Manifest) -> Report:
    from simam_inject.reporting.formats import format_count
    from simam_inject.reporting.plans import sites_table

    names = ", ".join(str(recipe.get("name") or "recipe") for recipe in manifest.recipes) or "no recipe"
    view: list[RenderableType] = [
        f"{file} ({names})",
        sites_table(manifest.insertions),
        f"{format_count(len(manifest.insertions), 'site')}; tensor names and shapes are as saved",
        "written with " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        *(f"recipe: {json.dumps(recipe)}" for recipe in manifest.recipes),
    ]
    data = {"path": file, "sites": manifest.insertions, "recipes": manifest.recipes, "versions": manifest.versions}
    return Report(view, data)


def _check_saved(options: CheckOptions, step: Step) -> Report:
    """Check that a valid file contains SimAM, and verify the model that it is loaded into."""
    from simam_inject.persist import load, read

    file, model = options.file, options.model
    manifest = read(file)
    found = _describe(file, manifest)
    view, data, ok = [*found.view], found.data, bool(manifest.insertions)
    if model is None and ok:
        view.append("to load it into its model and verify: add --model MODEL")
    elif model is not None and ok:
        from simam_inject.api import verify
        from simam_inject.reporting.plans import render_verification

        check_model_name(model)
        step(f"loading it into {model} and verifying")
        data["verification"] = verification = verify(load(file, build(model, num_classes=options.num_classes).model))
        view += render_verification(verification)
        ok = verification.ok
    return Report(view, {**data, "ok": ok}, ok)


def _check_checkpoint(file: Path, step: Step) -> Report:
    check_installed(f"{file}")
    from simam_inject.integrations.ultralytics.checking import check_checkpoint

    step("running it as trained, fused and exported")
    checkup = check_checkpoint(file)
    ok = not checkup.faults
    return Report([*_lines(checkup)], {**asdict(checkup), "ok": ok}, ok)


def _lines(checkup: Checkup) -> Iterator[RenderableType]:
    from simam_inject.reporting.formats import Table

    yield f"{checkup.path} ({checkup.network}, {checkup.recipe or 'no record'})"
    rows = []
    for site in checkup.sites:
        planned, present = ("yes" if value else "no" for value in (site.planned, site.present))
        rows.append((site.path, f"{site.e_lambda:g}", planned, present, str(site.runs), str(site.runs_fused)))
    yield Table(("site", "e_lambda", "planned", "present", "runs", "runs fused"), rows)
    yield f"{sum(site.is_live for site in checkup.sites)} of {len(checkup.sites)} sites are live"
    if checkup.exported is not None:
        wanted = sum(site.runs_fused for site in checkup.sites)
        yield f"{checkup.path.stem}.onnx: {checkup.exported} of {wanted} sites are in its graph"
    yield from (f"wrong: {fault}" for fault in checkup.faults)
    if not checkup.sites or any(not site.present for site in checkup.sites):
        yield "to add SimAM: inject(YOLO(...), recipe), then train; see docs/yolo.md"
