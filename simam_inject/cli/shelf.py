"""`recipes`: the shipped recipes, one of them as text, and one made from a model file with SimAM rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from simam_inject.cli.working import show, working
from simam_inject.errors import RecipeError

if TYPE_CHECKING:
    from simam_inject.recipe import Rule

_SELECTED_LENGTH = 40


def list_recipes() -> None:
    """Report the shipped recipes."""
    with working(steps=1):
        from simam_inject.recipe import load_recipe, shipped_recipes

        recipes = [load_recipe(name) for name in shipped_recipes()]
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    for column in ("what it is for", "rules"):
        table.add_column(column, overflow="fold")
    table.add_column("e_lambda", no_wrap=True)
    for recipe in recipes:
        rules = "\n".join(_shorten(rule) for rule in recipe.rules)
        table.add_row(
            Text(recipe.name, style="bold cyan"), Text(recipe.description), Text(rules), f"{recipe.e_lambda:g}"
        )
    show(table)
    show("print one: simam-inject recipes show NAME")


def _shorten(rule: Rule) -> str:
    """A rule in one line, with the first of the classes that it names."""
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
    """Print or write the recipe of a model file with SimAM rows; rows that mean something else go to stderr."""
    with working(steps=1):
        from simam_inject.integrations.ultralytics.model_files import import_model_yaml, write_recipe

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
