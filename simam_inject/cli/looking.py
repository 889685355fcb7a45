"""The commands that show: what a rule can name, where SimAM is applied, what it costs, and the shipped recipes."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import typer

from simam_inject.cli.options import BenchOptions, ModelFileOptions, ModelOptions, Options, PageOptions, RecipeOptions
from simam_inject.cli.preparing import apply_plan, as_inserted, describe, make_plan, prepare, run_example
from simam_inject.cli.program import Report, Step


def sites(options: ModelOptions, step: Step) -> Report:
    """Show what can be named in MODEL: block classes, their children, shapes. The first command to run."""
    built = prepare(options, step, steps=2)
    step("running it once")
    from rich.text import Text

    from simam_inject.api import survey
    from simam_inject.reporting.sites import render_sites, sites_to_dict

    anatomy = run_example(survey, built)
    data = {"model": options.model, "source": built.source, **sites_to_dict(anatomy)}
    return Report([Text(f"{built.name} ({built.note})", "bold"), *render_sites(anatomy)], data)


def explain(options: Options, step: Step) -> Report:
    """Draw where SimAM would go in each kind of block of MODEL. Changes nothing."""
    built, plan = make_plan(options, step, steps=2)
    from rich.text import Text

    from simam_inject.reporting.drawing import draw

    drawings = draw(plan.anatomy, plan.placed)
    view = Text("\n\n".join([describe(built, plan), *map(str, drawings)]))
    view.highlight_regex(r"(?m)^\S.*", "bold cyan")
    view.highlight_words(["[SimAM]"], "bold green")
    return Report([view], {"model": options.model, "recipe": plan.recipe.to_dict(), "blocks": drawings})


def report(options: PageOptions, step: Step) -> Report:
    """Write one self-contained HTML page about an injection: the network drawn, sites, skips, cost, checks, recipe."""
    built, plan = make_plan(options, step, steps=4)
    from simam_inject.api import verify
    from simam_inject.reporting.page import render_page

    step("inserting SimAM")
    apply_plan(built, plan, options.strength)
    step("verifying")
    verification = run_example(verify, built)
    page = render_page(
        as_inserted(built, plan), verification, heading=f"{options.model}, {plan.recipe.name}", note=built.note
    )
    options.html.write_text(page, encoding="utf-8")
    view = f"wrote {options.html}: {len(plan.placed)} sites, {str(verification).splitlines()[0]}"
    return Report([view], {"html": options.html, "ok": verification.ok}, verification.ok)


def bench(options: BenchOptions, step: Step) -> Report:
    """Measure what the recipe costs in MODEL: plain, with SimAM, with other attentions at the same sites."""
    built, plan = make_plan(options, step, steps=3 + 2 * options.rounds)
    from rich.text import Text

    from simam_inject.bench import Conditions, bench
    from simam_inject.reporting.plans import render_bench

    how = (options.device, options.batch, options.dtype, options.channels_last, options.compile, options.rounds)
    measured = run_example(partial(bench, against=options.against, step=step), built, plan.recipe, Conditions(*how))
    data = {"model": options.model, "source": built.source, "recipe": plan.recipe.to_dict(), **asdict(measured)}
    return Report([Text(describe(built, plan), "bold"), *render_bench(measured)], data)


def list_recipes(_options: None, _step: Step) -> Report:
    """Report the shipped recipes."""
    from simam_inject.recipe import load_recipe, shipped_recipes
    from simam_inject.reporting.formats import Table

    rows = [
        (recipe.name, recipe.description, "\n".join(rule.selector for rule in recipe.rules), f"{recipe.e_lambda:g}")
        for recipe in map(load_recipe, shipped_recipes())
    ]
    table = Table(("recipe", "description", "rules", "e_lambda"), rows)
    return Report([table, "print one: simam-inject recipes show NAME"])


def show_recipe(options: RecipeOptions, _step: Step) -> Report:
    """Print a shipped recipe as YAML."""
    from simam_inject.recipe import read_shipped

    return Report([read_shipped(options.name)])


def import_recipe(options: ModelFileOptions, _step: Step) -> Report:
    """Turn an ultralytics model file with SimAM rows into the same placement on the stock model, whose weights load."""
    from simam_inject.integrations.ultralytics.model_files import import_model_yaml, write_recipe

    found = import_model_yaml(options.file)
    text = write_recipe(found.recipe)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    if options.output is None:
        return Report([text])
    options.output.write_text(text, encoding="utf-8")
    return Report([f"wrote {options.output}"])
