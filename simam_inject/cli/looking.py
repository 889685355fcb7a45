"""Commands that change nothing: `sites`, `explain`, `bench`, `recipes`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simam_inject.cli.injecting import heading
from simam_inject.cli.options import BenchOptions, ModelOptions, RecipeOptions, file_to_write
from simam_inject.cli.preparing import make_plan, prepare
from simam_inject.cli.program import Outcome, Step, errors_shown, note, show

if TYPE_CHECKING:
    from simam_inject.bench import Bench
    from simam_inject.planning.tables import Table


def sites(options: ModelOptions, step: Step) -> Outcome:
    """Show what can be named in MODEL: block classes, their children, shapes. The first command to run."""
    prepared = prepare(options, step)
    from simam_inject.api import survey
    from simam_inject.reporting.sites import render_sites, sites_to_dict

    step("recording the forward")
    anatomy, built = survey(prepared.model, example_inputs=prepared.inputs), prepared.built
    data = {"model": built.name, "source": built.source, **sites_to_dict(anatomy)}
    return Outcome([f"{built.name} ({built.note})", *render_sites(anatomy)], data)


def explain(options: RecipeOptions, step: Step) -> Outcome:
    """Draw where SimAM would go in each kind of block of MODEL. Changes nothing."""
    prepared, plan = make_plan(options, step)
    from simam_inject.reporting.drawing import draw

    drawings = draw(plan.anatomy, plan.placed)
    lines = [line for drawing in drawings for line in ("", *str(drawing).splitlines())]
    data = {"model": prepared.built.name, "recipe": plan.recipe.to_dict(), "blocks": list(map(asdict, drawings))}
    return Outcome([heading(prepared, plan), *lines], data)


def bench(options: BenchOptions, step: Step) -> Outcome:
    """Measure what the recipe costs in MODEL: plain, with SimAM, with other attention modules at the same sites."""
    prepared, plan = make_plan(options, step)
    from simam_inject.bench import Conditions, bench

    names = ("device", "batch", "dtype", "channels_last", "compile", "rounds")
    conditions = Conditions(**{name: getattr(options, name) for name in names})
    more = {"example_inputs": prepared.inputs, "against": options.against, "step": step}
    found = bench(prepared.model, plan.recipe, conditions, **more)
    about = {"model": prepared.built.name, "source": prepared.built.source, "recipe": plan.recipe.to_dict()}
    return Outcome([heading(prepared, plan), *_render_bench(found)], {**about, **found.to_dict()})


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


def list_recipes() -> None:
    """List the shipped recipes."""
    from simam_inject.planning.tables import Table
    from simam_inject.recipe import load_recipe, shipped_recipes

    rows = [
        [each.name, each.description, "\n".join(rule.selector for rule in each.rules), f"{each.e_lambda:g}"]
        for each in map(load_recipe, shipped_recipes())
    ]
    show(Table(["recipe", "description", "rules", "e_lambda"], rows))
    show("print one: simam-inject recipes show NAME")


def show_recipe(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a shipped recipe as YAML."""
    from simam_inject.recipe import read_shipped

    with errors_shown():
        show(read_shipped(name))


def convert(
    file: Annotated[str, typer.Argument(metavar="FILE.yaml", help="A model file with SimAM rows")],
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Output file", parser=file_to_write())] = None,
) -> None:
    """Write a recipe that adds SimAM to the stock model where an ultralytics model file has SimAM rows."""
    from simam_inject.integrations.ultralytics.model_files import import_model_yaml, write_recipe

    with errors_shown():
        found = import_model_yaml(file)
        for line in found.notes:
            note(f"note: {line}")
        text = write_recipe(found.recipe)
        if output is not None:
            Path(output).write_text(text, encoding="utf-8")
        show(text if output is None else f"wrote {output}")
