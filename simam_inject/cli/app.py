"""The program: `simam-inject MODEL ...`, and the other commands by name."""

import typer

from simam_inject.cli import checking, comparing, injecting, looking, mapping, options
from simam_inject.cli.program import command, execute, group

recipes_app = typer.Typer(help=looking.recipes.__doc__, pretty_exceptions_enable=False)


@recipes_app.callback(invoke_without_command=True)
def _list_recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        execute(looking.recipes, None)


recipes_app.command("show")(command(looking.show_recipe, options.ShippedOptions))
recipes_app.command("from-yaml")(command(looking.convert, options.ConvertOptions))
app = group(injecting.inject, options.InjectOptions)
for _name, _run, _record in (
    ("sites", looking.sites, options.ModelOptions),
    ("explain", looking.explain, options.RecipeOptions),
    ("report", injecting.report, options.ReportOptions),
    ("bench", looking.bench, options.BenchOptions),
    ("check", checking.check, options.CheckOptions),
    ("show", checking.show, options.ShowOptions),
    ("maps", mapping.maps, options.MapsOptions),
):
    app.command(_name)(command(_run, _record))
app.add_typer(recipes_app, name="recipes")
app.add_typer(comparing.compare_app, name="compare")


def main() -> None:
    """Run the program."""
    app(prog_name="simam-inject")
