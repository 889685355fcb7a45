"""The commands that change nothing: list the blocks and layers of a model, where SimAM would go, a page about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from simam_inject.cli.composing import compose_recipe
from simam_inject.cli.options import ModelOptions, Options, PageOptions
from simam_inject.cli.preparing import Prepared, check_model_name, make_plan, prepare, sized
from simam_inject.cli.working import DONE, NO_EFFECT, Step, show, working
from simam_inject.errors import NoMatchError

if TYPE_CHECKING:
    from simam_inject import Plan, Recipe


def show_sites(options: ModelOptions) -> None:
    """Report what a rule can name in a model."""
    with working(steps=2, as_json=options.as_json, quiet=options.quiet) as step:
        prepared = prepare(options, step)
        from simam_inject.api import survey

        step("running it once")
        with sized(options.input_size):
            anatomy = survey(prepared.built.model, example_inputs=prepared.inputs)
    from simam_inject.reporting import render_sites, sites_to_dict

    if options.as_json:
        report = {"model": options.model, "source": prepared.built.source, **sites_to_dict(anatomy)}
        typer.echo(json.dumps(report, indent=2))
    elif not options.quiet:
        show(render_sites(anatomy, heading=f"{options.model} ({prepared.built.note})"))


def explain_recipe(options: Options) -> None:
    """Draw every kind of block that the recipe touches."""
    with working(steps=2, as_json=options.as_json, quiet=options.quiet) as step:
        prepared, recipe, plan = _planned(options, step)
    from simam_inject.reporting import Drawing, draw

    drawings = draw(plan.anatomy, (*plan.present, *plan.insertions))
    if options.as_json:
        blocks = [
            {"block": drawing.class_name, "lines": list(drawing.lines), "paths": list(drawing.paths)}
            for drawing in drawings
        ]
        typer.echo(json.dumps({"model": options.model, "recipe": recipe.to_dict(), "blocks": blocks}, indent=2))
    if options.as_json or options.quiet:
        return
    from rich.console import Group
    from rich.text import Text

    def parts(drawing: Drawing) -> Iterator[Text]:
        title, *lines = str(drawing).splitlines()
        yield Text(title, style="bold cyan")
        for line in lines:
            text = Text(line)
            text.highlight_words(["[SimAM]"], style="bold green")
            yield text
        yield Text()

    heading = Text(f"{options.model}, {recipe.name or 'recipe'} ({prepared.built.note})\n")
    show(Group(heading, *(line for drawing in drawings for line in parts(drawing))))


def write_report(options: Options, page: PageOptions) -> None:
    """Inject, verify, and write the page.

    Raises:
        typer.Exit: With 1 if verification failed; the page is written all the same.
    """
    with working(steps=4, as_json=options.as_json, quiet=options.quiet) as step:
        prepared, recipe, plan = _planned(options, step)
        from simam_inject.api import verify
        from simam_inject.reporting.page import render_page

        step("inserting SimAM")
        plan.apply()
        step("verifying")
        verification = verify(prepared.built.model, example_inputs=prepared.inputs)
        heading = f"{options.model}, {recipe.name or 'recipe'}"
        text = render_page(plan, verification, heading=heading, note=prepared.built.note)
        page.html.write_text(text, encoding="utf-8")
    if options.as_json:
        typer.echo(json.dumps({"html": str(page.html), "ok": verification.ok}))
    elif not options.quiet:
        show(
            f"wrote {page.html}: {len(plan.insertions) + len(plan.present)} sites, {str(verification).splitlines()[0]}"
        )
    raise typer.Exit(DONE if verification.ok else NO_EFFECT)


def _planned(options: Options, step: Step) -> tuple[Prepared, Recipe, Plan]:
    """The model, the recipe and the plan.

    Raises:
        NoMatchError: The recipe has no effect.
    """
    check_model_name(options.model)
    recipe = compose_recipe(options)
    prepared = prepare(options, step)
    step("running it once and planning")
    plan = make_plan(prepared, recipe, options)
    if not plan.insertions and not plan.is_done:
        from simam_inject.api import no_effect

        raise NoMatchError(no_effect(plan))
    return prepared, recipe, plan
