"""The commands and their options. Each hands over to a module that is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from simam_inject.cli import options
from simam_inject.cli.routing import MAIN_JOB, MainJobGroup

app = typer.Typer(
    cls=MainJobGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
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
    """Insert the SimAM attention into any convolutional network: same object, same keys, proven live.

    Exit codes: 0 done, 1 nothing matched or verification failed, 2 bad usage, recipe or model.
    """


@app.command(MAIN_JOB, hidden=True, no_args_is_help=True)
def inject(
    model: options.ModelName,
    after: options.After = None,
    before: options.Before = None,
    recipe: options.RecipeName = None,
    exclude: options.Exclude = None,
    e_lambda: options.ELambda = None,
    input_size: options.InputSize = None,
    pretrained: options.Pretrained = False,
    dry_run: options.DryRun = False,
    why: options.Why = False,
    as_json: options.AsJson = False,
    output: options.Output = None,
) -> None:
    """Insert SimAM into MODEL, verify it, and report every site."""
    if dry_run and output:
        raise typer.BadParameter("a dry run makes nothing that could be saved", param_hint="--output")
    from simam_inject.cli.injecting import Order, run

    run(
        Order(
            model=model,
            recipe=recipe,
            after=tuple(after or ()),
            before=tuple(before or ()),
            exclude=tuple(exclude or ()),
            e_lambda=None if e_lambda is None else options.parse_number(e_lambda),
            input_size=None if input_size is None else options.parse_size(input_size),
            pretrained=pretrained,
            dry_run=dry_run,
            why=why,
            as_json=as_json,
            output=None if output is None else options.parse_output(output),
        )
    )


@app.command()
def sites(model: options.ModelName, input_size: options.InputSize = None, as_json: options.AsJson = False) -> None:
    """Show what can be named in MODEL: block classes, their children, shapes. The first command to run."""
    from simam_inject.cli.listing import show_sites

    show_sites(model, input_size=None if input_size is None else options.parse_size(input_size), as_json=as_json)


@app.command()
def explain(
    model: options.ModelName,
    after: options.After = None,
    before: options.Before = None,
    recipe: options.RecipeName = None,
    exclude: options.Exclude = None,
    e_lambda: options.ELambda = None,
    input_size: options.InputSize = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw where SimAM would go in each kind of block of MODEL, with the rewritten forward. Touches nothing."""
    from simam_inject.cli.explaining import explain_recipe

    explain_recipe(
        model,
        recipe,
        after=tuple(after or ()),
        before=tuple(before or ()),
        exclude=tuple(exclude or ()),
        e_lambda=None if e_lambda is None else options.parse_number(e_lambda),
        input_size=None if input_size is None else options.parse_size(input_size),
        as_json=as_json,
    )


@app.command()
def bench(
    model: options.ModelName,
    after: options.After = None,
    before: options.Before = None,
    recipe: options.RecipeName = None,
    exclude: options.Exclude = None,
    e_lambda: options.ELambda = None,
    input_size: options.InputSize = None,
    pretrained: options.Pretrained = False,
    device: options.Device = "cpu",
    batch: options.Batch = 1,
    dtype: options.Dtype = "fp32",
    channels_last: options.ChannelsLast = False,
    compiled: options.Compiled = False,
    against: options.Against = "",
    rounds: options.Rounds = 15,
    as_json: options.AsJson = False,
    chart: options.Chart = None,
) -> None:
    """Measure what the recipe costs in MODEL: plain, with SimAM, with other attentions at the same sites."""
    from simam_inject.cli.benching import bench_recipe

    bench_recipe(
        model,
        recipe,
        after=tuple(after or ()),
        before=tuple(before or ()),
        exclude=tuple(exclude or ()),
        e_lambda=None if e_lambda is None else options.parse_number(e_lambda),
        input_size=None if input_size is None else options.parse_size(input_size),
        pretrained=pretrained,
        against=tuple(name.strip() for name in against.split(",") if name.strip()),
        conditions={
            "device": device,
            "batch": batch,
            "dtype": dtype,
            "channels_last": channels_last,
            "compile": compiled,
            "rounds": rounds,
        },
        as_json=as_json,
        chart=chart,
    )


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE.pt", show_default=False, help="A YOLO checkpoint")],
    as_json: options.AsJson = False,
) -> None:
    """Say whether SimAM is live in a YOLO checkpoint, and in the .onnx of the same name beside it. Exits 1 if not."""
    from simam_inject.cli.checking import check_file

    check_file(file, as_json=as_json)


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        from simam_inject.cli.listing import list_recipes

        list_recipes()


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)]) -> None:
    """Print a shipped recipe as YAML."""
    from simam_inject.cli.listing import show_recipe

    show_recipe(name)


@recipes_app.command("from-yaml")
def recipe_from_yaml(
    file: Annotated[str, typer.Argument(metavar="FILE.yaml", show_default=False)],
    output: Annotated[str | None, typer.Option("--output", metavar="FILE", help="Write the recipe there")] = None,
) -> None:
    """Turn an ultralytics model file with SimAM rows into the same placement on the stock model, whose weights load."""
    from simam_inject.cli.listing import import_recipe

    import_recipe(file, output)
