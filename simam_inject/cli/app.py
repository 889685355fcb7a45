"""The program: `simam-inject MODEL ...`, and the other commands by name."""

import io
import logging
import os
import sys
import warnings

from simam_inject.cli import comparing, injecting, looking
from simam_inject.cli.program import command, group

recipes_app = group(looking.recipes)
recipes_app.command("show")(command(looking.show_recipe))
recipes_app.command("from-yaml")(command(looking.convert))
app = group(injecting.inject)
for run in (
    looking.sites,
    looking.explain,
    injecting.report,
    looking.bench,
    looking.check,
    looking.show,
    looking.maps,
):
    app.command(run.__name__)(command(run))
app.add_typer(recipes_app, name="recipes")
app.add_typer(comparing.compare_app, name="compare")


def main() -> None:
    """Run the program, without the banners and retries of libraries, and with warnings in one line."""
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows, or the C locale, has few letters
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_args, **_more: f"warning: {message}\n"
    app(prog_name="simam-inject")
