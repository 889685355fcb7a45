"""Commands that save no model: `sites`, `explain`, `bench`, `maps`, `show`, `check`, `recipes`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from simam_inject.cli.injecting import heading
from simam_inject.cli.options import (
    BenchOptions,
    CheckOptions,
    ConvertOptions,
    FileOptions,
    MapsOptions,
    ModelOptions,
    OutputOptions,
    RecipeOptions,
    ShowRecipeOptions,
)
from simam_inject.cli.preparing import images_in, make_plan, prepare, read_image, selectors
from simam_inject.cli.program import Outcome, Step, note
from simam_inject.errors import FileError, ModelError, NoMatchError, RecipeError, check_installed, plural, shortened
from simam_inject.zoo import ZooModel
from simam_inject.zoo.yolo import check_ultralytics

if TYPE_CHECKING:
    from simam_inject.bench import Bench
    from simam_inject.integrations.ultralytics.checking import Checkup
    from simam_inject.planning.tables import Table

_MOST = 16
"""Photographs in one picture."""


def sites(options: ModelOptions, step: Step) -> Outcome:
    """Show what can be named in MODEL: block classes, their children, shapes. The first command to run."""
    built = prepare(options, step)
    from simam_inject.api import survey
    from simam_inject.reporting.sites import render_sites, sites_to_dict

    step("recording the forward")
    anatomy = survey(built.model, example_inputs=built.example_inputs)
    data = {"model": built.name, "source": built.source, **sites_to_dict(anatomy)}
    return Outcome([f"{built.name} ({built.note})", *render_sites(anatomy)], data)


def explain(options: RecipeOptions, step: Step) -> Outcome:
    """Draw where SimAM would go in each kind of block of MODEL. Changes nothing."""
    built, plan = make_plan(options, step)
    from simam_inject.reporting.drawing import draw

    drawings = draw(plan.anatomy, plan.placed)
    lines = [line for drawing in drawings for line in ("", *str(drawing).splitlines())]
    data = {"model": built.name, "recipe": plan.recipe.to_dict(), "blocks": list(map(asdict, drawings))}
    return Outcome([heading(built, plan), *lines], data)


def bench(options: BenchOptions, step: Step) -> Outcome:
    """Measure what the recipe costs in MODEL: plain, with SimAM, with other attention modules at the same sites."""
    built, plan = make_plan(options, step)
    from simam_inject.bench import Conditions, bench

    names = ("device", "batch", "dtype", "channels_last", "compile", "rounds")
    conditions = Conditions(**{name: getattr(options, name) for name in names})
    inputs = built.example_inputs
    found = bench(built.model, plan.recipe, conditions, against=options.against, example_inputs=inputs, step=step)
    about = {"model": built.name, "source": built.source, "recipe": plan.recipe.to_dict()}
    return Outcome([heading(built, plan), *_render_bench(found)], {**about, **asdict(found)})


def _render_bench(found: Bench) -> Iterator[Table | str]:
    from rich.filesize import decimal

    from simam_inject.planning.tables import Table

    conditions = found.conditions
    layout = "channels last" if conditions.channels_last else "NCHW"
    mode = "compiled" if conditions.compile else "eager"
    yield f"batch {conditions.batch}, {conditions.dtype}, {layout}, {mode}, {conditions.rounds} rounds"
    rows = []
    for row in found.rows:
        ratio = f"{row.ratio.median:.3f}"
        if row.variant != "plain":
            ratio += f" ({row.ratio.low:.3f}-{row.ratio.high:.3f})"
        sizes = ["-" if size is None else decimal(size) for size in (row.kept_bytes, row.peak_bytes)]
        ms, speed = f"{1e3 * row.seconds.median:.2f}", f"{row.images_per_second:.1f}"
        rows.append([row.mode, row.variant, ms, "too noisy" if row.ratio.is_noisy else ratio, speed, *sizes])
    table = Table(["mode", "variant", "ms", "x plain (quartiles)", "images/s", "kept", "peak"], rows)
    yield table if any(row.peak_bytes is not None for row in found.rows) else table.without("peak")
    for mode, reason in found.not_run:
        yield f"{mode}: not run: {reason}"
    floor = decimal(found.floor_bytes)
    yield f"{plural(found.sites, 'site')}; per batch, the attention reads and writes at least {floor}"
    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    yield f"measured on: {machine}; ratios are taken round by round, all variants interleaved in one process"
    if conditions.device == "cpu":
        yield "ms, images/s: of processor time divided by the number of threads; wall time is longer if threads wait"
    if any(row.kept_bytes is not None for row in found.rows):
        yield "kept: bytes that the forward keeps for the backward pass"


def maps(options: MapsOptions, step: Step) -> Outcome:
    """Draw the gates of SimAM in MODEL as heat maps over images."""
    check_installed("drawing attention maps", "maps", "matplotlib")
    files = [file for path in options.images for file in (images_in(path, _MOST) if path.is_dir() else [path])]
    if len(files) > _MOST:
        raise FileError(f"{len(files)} images do not fit into one picture; give at most {_MOST}")
    if selectors(options):
        built, plan = make_plan(options, step, options.new_strength)
        plan.apply()
    else:
        built = prepare(options, step)
    if options.strength is not None:
        from simam_inject import set_strength

        set_strength(built.model, options.strength)
    chosen = _choose(built, options.site)
    from simam_inject.maps import attention_maps, difference_maps
    from simam_inject.pictures import draw_maps

    step("running the model")
    shots = [read_image(built, file) for file in files]
    look = difference_maps if options.difference else attention_maps
    found = [look(built.model, shot.input, channel=options.channel) for shot in shots]
    # `path`, `path (run 2)`, `path before reader`
    drawn = [name for name in found[0] if any(name == path or name.startswith(f"{path} ") for path in chosen)]
    names = [name for name in drawn if found[0][name].dim() == 4]
    if not names:
        raise ModelError("none of these sites has a two-dimensional feature map")
    rows = [(shot, {name: values[name][0, 0] for name in names}) for shot, values in zip(shots, found, strict=True)]
    step("drawing")
    draw_maps(rows, "change" if options.difference else "gate", options.output)
    images = [
        {"image": file.name, "sites": {name: [value.min().item(), value.max().item()] for name, value in drawn.items()}}
        for file, (_, drawn) in zip(files, rows, strict=True)
    ]
    data = {"model": built.name, "output": str(options.output), "images": images}
    return Outcome([f"{options.output}: {plural(len(files), 'image')}, {', '.join(names)}"], data)


def _choose(built: ZooModel, patterns: list[str]) -> set[str]:
    """The sites to draw: those that `--site` matches, or the last of each reduction."""
    from simam_inject import injected
    from simam_inject.recipe.names import Glob

    sites = injected(built.model)
    if not sites:
        raise ModelError(f"{built.name} has no SimAM: add --recipe NAME or --after BLOCK")
    if not patterns:
        return set({site.reduction: site.path for site in sites}.values())
    try:
        globs = [Glob(pattern) for pattern in patterns]
    except ValueError as error:
        raise RecipeError(f"--site: {error}") from None
    chosen = {site.path for site in sites if any(glob.covers(site.path) for glob in globs)}
    if not chosen:
        known = shortened([site.path for site in sites])
        raise NoMatchError(f"no site matches --site {' '.join(patterns)}; SimAM is at {known}")
    return chosen


def show(options: FileOptions, _step: Step) -> Outcome:
    """Show what a .safetensors file contains besides its weights: sites, recipes, versions. Needs no model."""
    _check_exists(options.file)
    from simam_inject.persist import read
    from simam_inject.planning.tables import notes_on, sites_table

    found = read(options.file)
    sites, lambdas = found.insertions, {site.e_lambda for site in found.insertions}
    gains = sorted(site.gain for site in sites if site.gain != 1)
    names = [str(recipe.get("name", "a recipe without name")) for recipe in found.recipes]
    parts: list[Table | str] = [
        f"{options.file} ({', '.join(names) or 'no recipe'})",
        sites_table(sites).without("e_lambda" if len(lambdas) == 1 else ""),
        *notes_on(sites),
        *([f"{plural(len(gains), 'calibrated gain')}, from {gains[0]:.3g} to {gains[-1]:.3g}"] if gains else []),
        f"{plural(len(sites), 'site')}; tensor names and shapes are as saved",
        f"written with {', '.join(f'{name} {version}' for name, version in found.versions.items())}",
        *(f"recipe: {json.dumps(recipe)}" for recipe in found.recipes),
    ]
    about = {"recipes": list(found.recipes), "versions": dict(found.versions)}
    listed = [{name: value for name, value in asdict(site).items() if name != "child"} for site in sites]
    return Outcome(parts, {"path": str(options.file), "sites": listed, **about})


def check(options: CheckOptions, step: Step) -> Outcome:
    """Check that SimAM is live in a file, and in the .onnx of the same name beside a checkpoint. Exits 1 if not."""
    file = options.file
    if file.suffix not in (".safetensors", ".pt"):
        raise FileError(
            f"{file}: expected a .pt of ultralytics or a .safetensors of simam_inject.persist.save; an exported file "
            f"is checked against its model with simam_inject.export.prove({str(file)!r}, model)"
        )
    _check_exists(file)
    if file.suffix == ".safetensors":
        shown = show(options, step)
        idle = sum(site["strength"] == 0 for site in shown.data["sites"])
        wrong = [f"wrong: {idle} of {len(shown.data['sites'])} sites have strength 0"] if idle else []
        ok = bool(shown.data["sites"]) and not wrong
        advice = "to verify it: load it into its model with simam_inject.persist.load, and call verify(model)"
        return Outcome([*shown.parts, *wrong, *([advice] if ok else [])], shown.data | {"ok": ok}, ok=ok)
    check_ultralytics(str(file))
    from simam_inject.integrations.ultralytics.checking import check_checkpoint

    step("checking")
    found = check_checkpoint(file)
    ok = not found.faults
    return Outcome(_render_checkup(found), {**asdict(found), "path": str(file), "ok": ok}, ok=ok)


def _check_exists(file: Path) -> None:
    if not file.is_file():
        raise FileError(f"no such file: {str(file)!r}")


def _render_checkup(found: Checkup) -> Iterator[Table | str]:
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


def recipes(_options: OutputOptions, _step: Step) -> Outcome:
    """List the shipped recipes."""
    from simam_inject.planning.tables import Table
    from simam_inject.recipe import load_recipe, shipped_recipes

    shelf = [load_recipe(name) for name in shipped_recipes()]
    rows = [
        [each.name, each.description, "\n".join(rule.selector for rule in each.rules), f"{each.e_lambda:g}"]
        for each in shelf
    ]
    table = Table(["recipe", "description", "rules", "e_lambda"], rows)
    hint = "print one: simam-inject recipes show NAME"
    return Outcome([table, hint], {"recipes": [each.to_dict() for each in shelf]})


def show_recipe(options: ShowRecipeOptions, _step: Step) -> Outcome:
    """Print a shipped recipe as YAML."""
    from simam_inject.recipe import load_recipe, read_shipped

    text = read_shipped(options.name)
    return Outcome([text], load_recipe(options.name).to_dict())


def convert(options: ConvertOptions, step: Step) -> Outcome:
    """Write a recipe that adds SimAM to the stock model where an ultralytics model file has SimAM rows."""
    check_ultralytics(options.file)
    _check_exists(Path(options.file))
    step("reading the file")
    from simam_inject.integrations.ultralytics.model_files import import_model_yaml, write_recipe
    from simam_inject.persist.files import in_one_step

    found = import_model_yaml(options.file)
    for line in found.notes:
        note(f"note: {line}")
    text = write_recipe(found.recipe)
    if options.output is not None:
        with in_one_step(options.output) as file:
            file.write_text(text, encoding="utf-8")
    return Outcome([text if options.output is None else f"wrote {options.output}"], found.recipe.to_dict())
