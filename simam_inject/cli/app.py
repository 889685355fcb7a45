"""The commands, in the order of the help. Each is a function of a file here; what is heavy it imports when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from simam_inject.cli import benching, checking, comparing, injecting, looking, mapping, shelf
from simam_inject.cli.options import (
    BenchOptions,
    CheckOptions,
    InjectOptions,
    MapOptions,
    ModelFileOptions,
    ModelOptions,
    Options,
    PageOptions,
    RecipeOptions,
    ShowOptions,
)
from simam_inject.cli.program import MAIN_JOB, MainJobGroup, add_command, run

app = typer.Typer(cls=MainJobGroup, pretty_exceptions_enable=False, rich_markup_mode="rich")
recipes_app = typer.Typer(rich_markup_mode="rich")


def main() -> None:
    """Entry point of `simam-inject`."""
    app(prog_name="simam-inject")


def _show_version(asked: bool) -> None:
    if asked:
        from simam_inject import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def describe_program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Put the SimAM attention into a convolutional network: the same object, the same keys, verified.

    Exit codes: 0 done, 1 nothing matched or verification failed, 2 bad usage, recipe, model or file.
    """


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        run(shelf.list_recipes)


add_command(app, MAIN_JOB, injecting.inject, InjectOptions, hidden=True, no_args_is_help=True)
add_command(app, "sites", looking.sites, ModelOptions)
add_command(app, "explain", looking.explain, Options)
add_command(app, "report", looking.report, PageOptions)
add_command(app, "bench", benching.bench, BenchOptions)
add_command(app, "check", checking.check, CheckOptions)
add_command(app, "show", checking.show, ShowOptions)
add_command(app, "maps", mapping.maps, MapOptions)
app.add_typer(recipes_app, name="recipes")
add_command(recipes_app, "show", shelf.show_recipe, RecipeOptions)
add_command(recipes_app, "from-yaml", shelf.import_recipe, ModelFileOptions)
app.add_typer(comparing.compare_app, name="compare")
