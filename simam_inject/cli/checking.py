"""`check` and `show`: what SimAM a file contains, and whether it is live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.cli.options import CheckOptions, ShowOptions
from simam_inject.cli.preparing import check_model
from simam_inject.cli.program import Report, Step
from simam_inject.errors import FileError
from simam_inject.zoo import build
from simam_inject.zoo.yolo import check_installed

if TYPE_CHECKING:
    from simam_inject.integrations.ultralytics.checking import Checkup
    from simam_inject.persist.record import Manifest
    from simam_inject.planning.tables import Table


def show(options: ShowOptions, _step: Step) -> Report:
    """Show what a .safetensors file contains besides its weights: sites, recipes, versions. Needs no model."""
    from simam_inject.persist import read

    manifest = read(options.file)
    return Report(_render(options.file, manifest), _to_dict(options.file, manifest))


def check(options: CheckOptions, step: Step) -> Report:
    """Check that SimAM is live in a file, and in the .onnx of the same name beside a checkpoint. Exits 1 if not."""
    file = options.file
    if file.suffix not in (".safetensors", ".pt"):
        raise FileError(
            f"{file}: expected a .pt of ultralytics or a .safetensors of simam_inject.persist.save; an exported file "
            f"is checked against its model with simam_inject.export.prove({str(file)!r}, model)"
        )
    if not file.is_file():
        raise FileError(f"no such file: {str(file)!r}")
    if file.suffix == ".safetensors":
        return _check_saved(options, step)
    check_installed(str(file))
    from simam_inject.integrations.ultralytics.checking import check_checkpoint

    step("checking")
    found = check_checkpoint(file)
    ok = not found.faults
    return Report(_render_checkup(found), {**asdict(found), "path": str(found.path), "ok": ok}, ok)


def _check_saved(options: CheckOptions, step: Step) -> Report:
    """The file's own record, and with a model the checks of `verify`."""
    from simam_inject.persist import load, read

    manifest = read(options.file)
    parts, data = [*_render(options.file, manifest)], _to_dict(options.file, manifest)
    if options.model is None:
        return Report([*parts, "to load it into its model and verify: add --model MODEL"], {**data, "ok": True})
    from simam_inject.api import verify
    from simam_inject.reporting.plans import render_verification

    check_model(options.model)
    step("verifying")
    found = verify(load(options.file, build(options.model, num_classes=options.num_classes).model))
    data |= {"verification": asdict(found), "ok": found.ok}
    return Report([*parts, *render_verification(found)], data, found.ok)


def _render(path: Path, manifest: Manifest) -> Iterator[Table | str]:
    from simam_inject.planning.tables import sites_table

    names = ", ".join(str(recipe.get("name", "a recipe without name")) for recipe in manifest.recipes) or "no recipe"
    yield f"{path} ({names})"
    lambdas = {site.e_lambda for site in manifest.insertions}
    yield sites_table(manifest.insertions).without("e_lambda" if len(lambdas) == 1 else "")
    count = len(manifest.insertions)
    yield f"{count} site{'s' if count != 1 else ''}; tensor names and shapes are as saved"
    yield f"written with {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}"
    for recipe in manifest.recipes:
        yield f"recipe: {json.dumps(recipe)}"


def _to_dict(path: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "path": str(path),
        "sites": [asdict(site) for site in manifest.insertions],
        "recipes": list(manifest.recipes),
        "versions": dict(manifest.versions),
    }


def _render_checkup(found: Checkup) -> Iterator[Table | str]:
    from simam_inject.planning.tables import Table

    yield f"{found.path} ({', '.join(filter(None, [found.network, found.recipe]))})"
    words = {True: "yes", False: "NO"}
    rows = [
        [
            site.path or "(model)",
            f"{site.e_lambda:g}",
            words[site.planned],
            words[site.present],
            str(site.runs),
            str(site.runs_fused),
        ]
        for site in found.sites
    ]
    if rows:
        yield Table(["site", "e_lambda", "planned", "present", "runs", "runs fused"], rows)
        yield f"{sum(site.is_live for site in found.sites)} of {len(found.sites)} sites are live"
    if found.exported is not None:
        yield f"{found.exported} of {len(found.sites)} sites reach the output of {found.path.with_suffix('.onnx').name}"
    for fault in found.faults:
        yield f"fault: {fault}"
