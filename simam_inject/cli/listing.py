"""The commands that only look: what can be named in a model, and which recipes there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from simam_inject.cli.working import show, working

if TYPE_CHECKING:
    from simam_inject.recipe import Rule

_SELECTED_LENGTH = 40


def show_sites(model: str, *, input_size: tuple[int, ...] | None, as_json: bool) -> None:
    """Report what a rule can name in a model."""
    with working(steps=2, quiet=as_json) as step:
        step(f"building {model}")
        from simam_inject.cli.models import example_inputs, sized
        from simam_inject.surgery import survey
        from simam_inject.zoo import build

        built = build(model)
        step("running it once")
        with sized(input_size):
            anatomy = survey(built.model, example_inputs=example_inputs(built, input_size))
    from simam_inject.reporting import render_sites, sites_to_dict

    if as_json:
        typer.echo(json.dumps({"model": model, "source": built.source, **sites_to_dict(anatomy)}, indent=2))
    else:
        show(render_sites(anatomy, heading=f"{model} ({built.note})"))


def list_recipes() -> None:
    """Report the shipped recipes."""
    with working(steps=1):
        from simam_inject.recipe import load_recipe, shipped_recipes

        recipes = [load_recipe(name) for name in shipped_recipes()]
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in ("recipe", "what it is for", "rules", "e_lambda"):
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        rules = "\n".join(_shorten(rule) for rule in recipe.rules)
        table.add_row(
            Text(recipe.name, style="bold cyan"), Text(recipe.description), Text(rules), f"{recipe.e_lambda:g}"
        )
    show(table)
    show("the whole of one: simam-inject recipes show NAME")


def _shorten(rule: Rule) -> str:
    """A rule in one line, with the first of the dozens of classes it may name."""
    place = f", {rule.position} {rule.target}"
    selected = rule.selector.removesuffix(place)
    if len(selected) > _SELECTED_LENGTH:
        selected = f"{selected[:_SELECTED_LENGTH]}..."
    return f"{selected}{place}"


def show_recipe(name: str) -> None:
    """Print a shipped recipe as it is written: a start for one's own."""
    with working(steps=1):
        from simam_inject.recipe import read_shipped

        text = read_shipped(name)
    typer.echo(text, nl=not text.endswith("\n"))


def import_recipe(file: str, output: str | None) -> None:
    """Print or write the recipe of a model file with SimAM rows; what its rows do not do as it seems goes to stderr."""
    with working(steps=1):
        from pathlib import Path

        from simam_inject.errors import RecipeError
        from simam_inject.recipe.from_yaml import import_model_yaml, write_recipe

        found = import_model_yaml(file)
        text = write_recipe(found.recipe)
        if output is not None:
            try:
                Path(output).write_text(text, encoding="utf-8")
            except OSError as error:
                raise RecipeError(f"cannot write {output}: {error.strerror}") from None
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(text if output is None else f"wrote {output}", nl=output is not None)
