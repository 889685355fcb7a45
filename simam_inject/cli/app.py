"""The commands, in the order of the help. Each is a function of a file here, which imports torch only when it runs."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Annotated

import typer

from simam_inject.cli import checking, comparing, injecting, looking, mapping, options
from simam_inject.cli.program import MAIN_JOB, MainJobGroup, add_command, run

FIRST_COMMANDS = """\
Add SimAM attention to a convolutional network. Start with:

  simam-inject sites resnet50                      list blocks and layers
  simam-inject resnet50 --after bottleneck         add SimAM, and verify
  simam-inject resnet50 --recipe paper --dry-run   preview a shipped recipe
  simam-inject recipes                             the shipped recipes

All options and commands: simam-inject --help"""

app = typer.Typer(cls=MainJobGroup, pretty_exceptions_enable=False, rich_markup_mode="rich")
recipes_app = typer.Typer(rich_markup_mode="rich")


def main() -> None:
    """Entry point of `simam-inject`. Silences the banners and retries of libraries, and prints warnings in one line."""
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    app(prog_name="simam-inject")


def _show_version(asked: bool) -> None:
    if asked:
        from simam_inject import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def describe_program(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Add SimAM attention to a convolutional network, in place, and verify it; state_dict keys do not change.

    Exit codes: 0 done, 1 nothing matched or verification failed, 2 bad usage, recipe, model or file.
    """
    if context.invoked_subcommand is None:
        typer.echo(FIRST_COMMANDS)


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        run(looking.list_recipes)


add_command(app, MAIN_JOB, injecting.inject, options.InjectOptions)
add_command(app, "sites", looking.sites, options.ModelOptions)
add_command(app, "explain", looking.explain, options.Options)
add_command(app, "report", looking.report, options.PageOptions)
add_command(app, "bench", looking.bench, options.BenchOptions)
add_command(app, "check", checking.check, options.CheckOptions)
add_command(app, "show", checking.show, options.FileOptions)
add_command(app, "maps", mapping.maps, options.MapOptions)
app.add_typer(recipes_app, name="recipes")
add_command(recipes_app, "show", looking.show_recipe, options.RecipeOptions)
add_command(recipes_app, "from-yaml", looking.import_recipe, options.ModelFileOptions)
app.add_typer(comparing.compare_app, name="compare")
