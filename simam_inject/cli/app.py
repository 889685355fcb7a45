"""The commands. Each hands over to a module that is imported when it runs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from simam_inject.cli.options import (
    AsJson,
    BenchOptions,
    InjectOptions,
    ModelOptions,
    Options,
    PageOptions,
    complete_recipe,
    with_options,
)
from simam_inject.cli.routing import MAIN_JOB, MainJobGroup

app = typer.Typer(cls=MainJobGroup, pretty_exceptions_enable=False, rich_markup_mode="rich")
recipes_app = typer.Typer(no_args_is_help=False, rich_markup_mode="rich")
app.add_typer(recipes_app, name="recipes")


def main() -> None:
    """Entry point of `simam-inject`."""
    app(prog_name="simam-inject")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(version("simam_inject"))
        except PackageNotFoundError:
            typer.echo(f"{_source_version()} (from source, not installed)")
        raise typer.Exit


def _source_version() -> str:
    """What the checkout's own pyproject.toml says."""
    import tomllib
    from pathlib import Path

    try:
        data = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(data["project"]["version"])
    except (OSError, ValueError, KeyError):
        return "unknown version"


@app.callback()
def describe_program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Put the SimAM attention into a convolutional network: the same object, the same keys, verified.

    Exit codes: 0 done, 1 nothing matched or verification failed, 2 bad usage, recipe, model or file.
    """


@app.command(MAIN_JOB, hidden=True, no_args_is_help=True)
@with_options
def inject(options: Options, more: InjectOptions) -> None:
    """Put SimAM into MODEL, verify it, and report every site."""
    from simam_inject.cli.injecting import run

    run(options, more)


@app.command()
@with_options
def sites(options: ModelOptions) -> None:
    """Show what can be named in MODEL: block classes, their children, shapes. The first command to run."""
    from simam_inject.cli.looking import show_sites

    show_sites(options)


@app.command()
@with_options
def explain(options: Options) -> None:
    """Draw where SimAM would go in each kind of block of MODEL. Changes nothing."""
    from simam_inject.cli.looking import explain_recipe

    explain_recipe(options)


@app.command()
@with_options
def report(options: Options, page: PageOptions) -> None:
    """Write one self-contained HTML page about an injection: the network drawn, sites, skips, cost, checks, recipe."""
    from simam_inject.cli.looking import write_report

    write_report(options, page)


@app.command()
@with_options
def bench(options: Options, conditions: BenchOptions) -> None:
    """Measure what the recipe costs in MODEL: plain, with SimAM, with other attentions at the same sites."""
    from simam_inject.cli.benching import bench_recipe

    bench_recipe(options, conditions)


@app.command()
def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="A YOLO checkpoint, or a .safetensors file")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Load a .safetensors file into this model and verify")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that SimAM is live in a file, and in the .onnx of the same name beside a checkpoint. Exits 1 if not."""
    from simam_inject.cli.checking import check_file

    check_file(file, model=model, as_json=as_json)


@app.command()
def show(
    file: Annotated[str, typer.Argument(metavar="FILE.safetensors", show_default=False, help="A file of ours")],
    as_json: AsJson = False,
) -> None:
    """Show what a .safetensors file holds beside its weights: sites, recipes, versions. Needs no model."""
    from simam_inject.cli.checking import show_file

    show_file(file, as_json=as_json)


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        from simam_inject.cli.shelf import list_recipes

        list_recipes()


@recipes_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, autocompletion=complete_recipe)],
) -> None:
    """Print a shipped recipe as YAML."""
    from simam_inject.cli.shelf import show_recipe

    show_recipe(name)


@recipes_app.command("from-yaml")
def recipe_from_yaml(
    file: Annotated[str, typer.Argument(metavar="FILE.yaml", show_default=False)],
    output: Annotated[str | None, typer.Option("--output", metavar="FILE", help="Write the recipe there")] = None,
) -> None:
    """Turn an ultralytics model file with SimAM rows into the same placement on the stock model, whose weights load."""
    from simam_inject.cli.shelf import import_recipe

    import_recipe(file, output)


# These two are registered where their files exist.
if find_spec("simam_inject.cli.comparing") is not None:
    from simam_inject.cli.comparing import compare_app

    app.add_typer(compare_app, name="compare")
if find_spec("simam_inject.cli.mapping") is not None:
    from simam_inject.cli.mapping import maps

    app.command("maps")(maps)
