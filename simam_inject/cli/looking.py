"""Commands that change nothing: `sites`, `explain`, `bench`, `recipes`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from simam_inject.cli.injecting import heading
from simam_inject.cli.options import (
    BenchOptions,
    ConvertOptions,
    ModelOptions,
    RecipeOptions,
    ShippedOptions,
)
from simam_inject.cli.preparing import compose_recipe, make_plan, prepare
from simam_inject.cli.program import Report, Step, note

if TYPE_CHECKING:
    from simam_inject.bench import Bench
    from simam_inject.planning.tables import Table


def sites(options: ModelOptions, step: Step) -> Report:
    """Show what can be named in MODEL: block classes, their children, shapes. The first command to run."""
    prepared = prepare(options, step)
    from simam_inject.api import survey
    from simam_inject.reporting.sites import render_sites, sites_to_dict

    step("recording the forward")
    anatomy = survey(prepared.built.model, example_inputs=prepared.inputs)
    head = f"{prepared.built.name} ({prepared.built.note})"
    names = {"model": prepared.built.name, "source": prepared.built.source}
    return Report([head, *render_sites(anatomy)], {**names, **sites_to_dict(anatomy)})


def explain(options: RecipeOptions, step: Step) -> Report:
    """Draw where SimAM would go in each kind of block of MODEL. Changes nothing."""
    recipe = compose_recipe(options)
    prepared = prepare(options, step)
    step("planning")
    plan = make_plan(prepared, recipe, options)
    from simam_inject.reporting.drawing import draw

    drawings = draw(plan.anatomy, plan.placed)
    parts = [heading(prepared, recipe, options), *(line for each in drawings for line in ("", *str(each).splitlines()))]
    names = {"model": prepared.built.name, "recipe": plan.recipe.to_dict()}
    return Report(parts, {**names, "blocks": [asdict(drawing) for drawing in drawings]})


def bench(options: BenchOptions, step: Step) -> Report:
    """Measure what the recipe costs in MODEL: plain, with SimAM, with other attentions at the same sites."""
    recipe = compose_recipe(options)
    prepared = prepare(options, step)
    from simam_inject.bench import Conditions, bench

    names = ("device", "batch", "dtype", "channels_last", "compile", "rounds")
    conditions = Conditions(**{name: getattr(options, name) for name in names})
    make_plan(prepared, recipe, options)
    found = bench(
        prepared.built.model,
        recipe,
        conditions,
        against=options.against,
        example_inputs=prepared.inputs,
        step=step,
    )
    about = {"model": prepared.built.name, "source": prepared.built.source, "recipe": recipe.to_dict()}
    return Report([heading(prepared, recipe, options), *_render_bench(found)], {**about, **found.to_dict()})


def _render_bench(found: Bench) -> Iterator[Table | str]:
    from rich.filesize import decimal

    from simam_inject.planning.tables import Table

    conditions = found.conditions
    layout, mode = (
        "channels last" if conditions.channels_last else "NCHW",
        "compiled" if conditions.compile else "eager",
    )
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
    sites = "1 site" if found.sites == 1 else f"{found.sites} sites"
    yield f"{sites}; per batch, the attention reads and writes at least {decimal(found.floor_bytes)}"
    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    yield f"measured on: {machine}; ratios are taken round by round, all variants interleaved in one process"
    if any(row.kept_bytes is not None for row in found.rows):
        yield "kept: bytes that the forward keeps for the backward pass"


def recipes(_options: None, _step: Step) -> Report:
    """List the shipped recipes."""
    from simam_inject.planning.tables import Table
    from simam_inject.recipe import load_recipe, shipped_recipes

    rows = [
        [each.name, each.description, "\n".join(rule.selector for rule in each.rules), f"{each.e_lambda:g}"]
        for each in map(load_recipe, shipped_recipes())
    ]
    table = Table(["recipe", "description", "rules", "e_lambda"], rows)
    return Report([table, "print one: simam-inject recipes show NAME"])


def show_recipe(options: ShippedOptions, _step: Step) -> Report:
    """Print a shipped recipe as YAML."""
    from simam_inject.recipe import read_shipped

    return Report([read_shipped(options.name)])


def convert(options: ConvertOptions, _step: Step) -> Report:
    """Turn an ultralytics model file with SimAM rows into the same placement on the stock model, whose weights load."""
    from simam_inject.integrations.ultralytics.model_files import import_model_yaml, write_recipe

    found = import_model_yaml(options.file)
    for line in found.notes:
        note(f"note: {line}")
    text = write_recipe(found.recipe)
    if options.output is None:
        return Report([text])
    options.output.write_text(text, encoding="utf-8")
    return Report([f"wrote {options.output}"])
