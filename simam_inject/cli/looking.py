"""The commands that change nothing: list the blocks and layers of a model, where SimAM would go, a page about it."""

from __future__ import annotations

from simam_inject.cli.options import ModelOptions, Options, PageOptions
from simam_inject.cli.preparing import make_plan, prepare
from simam_inject.cli.program import Report, Step


def sites(options: ModelOptions, step: Step) -> Report:
    """Show what can be named in MODEL: block classes, their children, shapes. The first command to run."""
    prepared = prepare(options, step, steps=2)
    step("running it once")
    anatomy = prepared.survey()
    from simam_inject.reporting import render_sites, sites_to_dict

    data = {"model": options.model, "source": prepared.built.source, **sites_to_dict(anatomy)}
    return Report(render_sites(anatomy, heading=f"{options.model} ({prepared.built.note})"), data)


def explain(options: Options, step: Step) -> Report:
    """Draw where SimAM would go in each kind of block of MODEL. Changes nothing."""
    planned = make_plan(options, step, steps=2)
    planned.check_effect()
    from rich.text import Text

    from simam_inject.reporting import draw

    drawings = draw(planned.plan.anatomy, planned.plan.placed)
    view = Text("\n\n".join([f"{planned.heading} ({planned.built.note})", *map(str, drawings)]))
    view.highlight_regex(r"(?m)^\S.*", "bold cyan")
    view.highlight_words(["[SimAM]"], "bold green")
    blocks = [{"block": one.class_name, "lines": one.lines, "paths": one.paths} for one in drawings]
    return Report(view, {"model": options.model, "recipe": planned.recipe.to_dict(), "blocks": blocks})


def report(options: PageOptions, step: Step) -> Report:
    """Write one self-contained HTML page about an injection: the network drawn, sites, skips, cost, checks, recipe."""
    planned = make_plan(options, step, steps=4)
    planned.check_effect()
    from simam_inject.api import verify
    from simam_inject.reporting.page import render_page

    step("inserting SimAM")
    model = planned.apply(options.strength)
    step("verifying")
    verification = verify(model, example_inputs=planned.inputs)
    page = render_page(planned.plan, verification, heading=planned.heading, note=planned.built.note)
    options.html.write_text(page, encoding="utf-8")
    view = f"wrote {options.html}: {len(planned.plan.placed)} sites, {str(verification).splitlines()[0]}"
    return Report(view, {"html": options.html, "ok": verification.ok}, verification.ok)
