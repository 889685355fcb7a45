"""`bench`: what the recipe costs in the user's own model, next to other attentions at the same sites."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from simam_inject.cli.composing import compose_recipe
from simam_inject.cli.options import BenchOptions, Options, split_names
from simam_inject.cli.preparing import check_model_name, make_plan, prepare
from simam_inject.cli.working import show, working

if TYPE_CHECKING:
    from simam_inject.bench import Bench, Conditions
    from simam_inject.recipe import Recipe


def bench_recipe(options: Options, more: BenchOptions) -> None:
    """Measure, and report as a table, as JSON, and as a chart where one is asked for."""
    with working(steps=3 + 2 * more.rounds, as_json=options.as_json, quiet=options.quiet) as step:
        check_model_name(options.model)
        recipe = compose_recipe(options)
        prepared = prepare(options, step)
        from simam_inject.bench import Conditions, bench

        conditions = Conditions(
            device=more.device,
            batch=more.batch,
            dtype=more.dtype,
            channels_last=more.channels_last,
            compile=more.compiled,
            rounds=more.rounds,
        )
        step("planning")
        make_plan(prepared, recipe, options)
        measured = bench(
            prepared.built.model,
            recipe,
            conditions,
            against=split_names(more.against),
            example_inputs=prepared.inputs,
            step=step,
        )
    heading = _heading(options.model, recipe, measured.conditions)
    from simam_inject.reporting.benches import bench_chart, render_bench

    if more.chart is not None:
        more.chart.write_text(bench_chart(measured.rows, heading=heading), encoding="utf-8")
    if options.as_json:
        report = {
            "model": options.model,
            "source": prepared.built.source,
            "recipe": recipe.to_dict(),
            **measured.to_dict(),
        }
        typer.echo(json.dumps(report, indent=2))
    elif not options.quiet:
        show(render_bench(measured.rows, heading=heading, notes=tuple(_notes(measured)), not_run=measured.not_run))


def _heading(model: str, recipe: Recipe, conditions: Conditions) -> str:
    words = [f"batch {conditions.batch}", conditions.dtype, "channels last" if conditions.channels_last else "NCHW"]
    words.append("compiled" if conditions.compile else "eager")
    return f"{model}, {recipe.name or 'recipe'}: {', '.join(words)}, {conditions.rounds} rounds"


def _notes(measured: Bench) -> list[str]:
    from simam_inject.reporting.formats import format_bytes, format_count

    machine = ", ".join(f"{key} {value}" for key, value in measured.machine.items())
    sites = format_count(measured.sites, "site")
    return [
        f"{sites}; per batch, the attention reads and writes at least {format_bytes(measured.floor_bytes)}",
        f"measured on: {machine}; ratios are taken round by round, all variants interleaved in one process",
    ]
