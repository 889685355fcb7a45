"""`bench`: what the recipe costs in the user's own model, next to other attentions at the same sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from simam_inject.cli.working import show, working

if TYPE_CHECKING:
    from simam_inject.bench import Bench, Conditions
    from simam_inject.recipe import Recipe


def bench_recipe(
    model: str,
    recipe: str | None,
    *,
    after: tuple[str, ...],
    before: tuple[str, ...],
    exclude: tuple[str, ...],
    e_lambda: float | None,
    input_size: tuple[int, ...] | None,
    pretrained: bool,
    against: tuple[str, ...],
    conditions: dict[str, object],
    as_json: bool,
    chart: Path | None,
) -> None:
    """Measure, and report as a table, as JSON, and as a chart where one is asked for."""
    with working(steps=4, quiet=as_json) as step:
        from simam_inject.cli.composing import check_exclude, compose_recipe

        composed = compose_recipe(recipe, after, before, exclude, e_lambda)
        step(f"building {model}")
        from simam_inject.bench import Conditions, bench
        from simam_inject.cli.models import example_inputs, sized
        from simam_inject.zoo import build

        built = build(model, pretrained=pretrained)
        inputs = example_inputs(built, input_size)
        asked = Conditions(**conditions)  # type: ignore[arg-type]
        with sized(input_size):
            check_exclude(exclude, built.model, inputs)
            measured = bench(built.model, composed, asked, against=against, example_inputs=inputs, step=step)
    heading = _heading(model, composed, measured.conditions)
    from simam_inject.reporting.benches import bench_chart, render_bench

    if chart is not None:
        chart.write_text(bench_chart(measured.rows, heading=heading), encoding="utf-8")
    if as_json:
        report = {"model": model, "source": built.source, "recipe": composed.to_dict(), **measured.to_dict()}
        typer.echo(json.dumps(report, indent=2))
    else:
        notes = tuple(_notes(measured))
        show(render_bench(measured.rows, heading=heading, notes=notes, not_run=measured.not_run))


def _heading(model: str, recipe: Recipe, conditions: Conditions) -> str:
    words = [f"batch {conditions.batch}", conditions.dtype, "channels last" if conditions.channels_last else "NCHW"]
    words.append("compiled" if conditions.compile else "eager")
    return f"{model}, {recipe.name or 'recipe'}: {', '.join(words)}, {conditions.rounds} rounds"


def _notes(measured: Bench) -> list[str]:
    from simam_inject.reporting.formats import format_bytes

    machine = ", ".join(f"{key} {value}" for key, value in measured.machine.items())
    return [
        f"{measured.sites} sites; each batch moves at the least {format_bytes(measured.floor_bytes)} for the attention",
        f"measured on: {machine}; ratios are taken round by round, all variants interleaved in one process",
    ]
