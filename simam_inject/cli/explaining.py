"""`explain`: where in the dataflow SimAM goes, drawn, and what the rewritten forwards look like."""

from __future__ import annotations

import json
from collections.abc import Iterator

import typer

from simam_inject.cli.working import show, working


def explain_recipe(
    model: str,
    recipe: str | None,
    *,
    after: tuple[str, ...],
    before: tuple[str, ...],
    exclude: tuple[str, ...],
    e_lambda: float | None,
    input_size: tuple[int, ...] | None,
    as_json: bool,
) -> None:
    """Draw every kind of block that the recipe touches, with its generated forward as a diff."""
    with working(steps=2, quiet=as_json) as step:
        from simam_inject.cli.composing import check_exclude, compose_recipe

        composed = compose_recipe(recipe, after, before, exclude, e_lambda)
        step(f"building {model}")
        from simam_inject.cli.models import example_inputs, sized
        from simam_inject.errors import NoMatchError
        from simam_inject.operation import no_effect
        from simam_inject.surgery import explain
        from simam_inject.zoo import build

        built = build(model)
        step("running it once and planning")
        inputs = example_inputs(built, input_size)
        with sized(input_size):
            check_exclude(exclude, built.model, inputs)
            explanation = explain(built.model, composed, example_inputs=inputs)
        if not explanation.differences:
            raise NoMatchError(no_effect(explanation.plan))
    from simam_inject.reporting import draw

    drawings = draw(explanation.plan.anatomy, (*explanation.plan.present, *explanation.plan.insertions))
    if as_json:
        blocks = [
            {
                "block": drawing.class_name,
                "lines": list(drawing.lines),
                "paths": list(drawing.paths),
                "forward": explanation.differences[drawing.paths[0]],
            }
            for drawing in drawings
        ]
        typer.echo(json.dumps({"model": model, "recipe": composed.to_dict(), "blocks": blocks}, indent=2))
        return
    from rich.console import Group
    from rich.syntax import Syntax
    from rich.text import Text

    def parts() -> Iterator[Text | Syntax]:
        yield Text(f"{model}, {composed.name or 'recipe'} ({built.note})\n")
        for drawing in drawings:
            title, *lines = str(drawing).splitlines()
            yield Text(title, style="bold cyan")
            for line in lines:
                text = Text(line)
                text.highlight_words(["[SimAM]"], style="bold green")
                yield text
            yield Text()
            yield Syntax(explanation.differences[drawing.paths[0]], "diff", background_color="default", word_wrap=True)
            yield Text()

    show(Group(*parts()))
