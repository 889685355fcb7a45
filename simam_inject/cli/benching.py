"""`bench`: what the recipe costs in the user's own model, next to other attentions at the same sites."""

from __future__ import annotations

from simam_inject.cli.options import BenchOptions
from simam_inject.cli.preparing import make_plan
from simam_inject.cli.program import Report, Step


def bench(options: BenchOptions, step: Step) -> Report:
    """Measure what the recipe costs in MODEL: plain, with SimAM, with other attentions at the same sites."""
    planned = make_plan(options, step, steps=3 + 2 * options.rounds)
    from simam_inject.bench import Conditions, bench
    from simam_inject.reporting.benches import bench_chart, render_bench

    conditions = Conditions(
        device=options.device,
        batch=options.batch,
        dtype=options.dtype,
        channels_last=options.channels_last,
        compile=options.compile,
        rounds=options.rounds,
    )
    model, recipe, inputs = planned.built.model, planned.recipe, planned.inputs
    measured = bench(model, recipe, conditions, against=options.against, example_inputs=inputs, step=step)
    if options.chart is not None:
        options.chart.write_text(bench_chart(measured, planned.heading), encoding="utf-8")
    data = {"model": options.model, "source": planned.built.source, "recipe": recipe.to_dict(), **measured.to_dict()}
    return Report(render_bench(measured, planned.heading), data)
