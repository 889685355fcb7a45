"""The program: `simam-inject MODEL ...`, and the other commands by name."""

import logging
import os
import warnings

from simam_inject.cli import checking, comparing, injecting, looking, mapping, options
from simam_inject.cli.program import command, group

recipes_app = group(looking.list_recipes, options.OutputOptions)
recipes_app.command("show")(command(looking.show_recipe, options.ShowRecipeOptions))
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
    """Run the program, without the banners and retries of libraries, and with warnings in one line."""
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.formatwarning = lambda message, *_args, **_more: f"warning: {message}\n"
    app(prog_name="simam-inject")
