"""`recipes`: the shipped recipes, one of them as text, and one made from a model file with SimAM rows."""

from __future__ import annotations

import typer

from simam_inject.cli.options import ModelFileOptions, RecipeOptions
from simam_inject.cli.program import Report, Step


def list_recipes(_options: None, _step: Step) -> Report:
    """Report the shipped recipes."""
    from rich.console import Group
    from rich.table import Column
    from rich.text import Text

    from simam_inject.recipe import load_recipe, shipped_recipes
    from simam_inject.reporting.formats import new_table

    wrapped = [Column(name, overflow="fold") for name in ("description", "rules")]
    table = new_table(Column("recipe", no_wrap=True), *wrapped, Column("e_lambda", no_wrap=True))
    for recipe in map(load_recipe, shipped_recipes()):
        rules = "\n".join(rule.selector for rule in recipe.rules)
        name = Text(recipe.name, style="bold cyan")
        table.add_row(name, Text(recipe.description), Text(rules), f"{recipe.e_lambda:g}")
    return Report(Group(table, "print one: simam-inject recipes show NAME"))


def show_recipe(options: RecipeOptions, _step: Step) -> Report:
    """Print a shipped recipe as YAML."""
    from simam_inject.recipe import read_shipped

    return Report(read_shipped(options.name))


def import_recipe(options: ModelFileOptions, _step: Step) -> Report:
    """Turn an ultralytics model file with SimAM rows into the same placement on the stock model, whose weights load."""
    from simam_inject.integrations.ultralytics.model_files import import_model_yaml, write_recipe

    found = import_model_yaml(options.file)
    text = write_recipe(found.recipe)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    if options.output is None:
        return Report(text)
    options.output.write_text(text, encoding="utf-8")
    return Report(f"wrote {options.output}")
