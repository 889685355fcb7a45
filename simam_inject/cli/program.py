"""One way from the words of a command line to a report, whose parts are printed in one place.

A command is a function `(options, step) -> Report`. `add_command` makes an option of each field of its options object;
`run` calls it, shows what it does on stderr, and prints the report on stdout.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from simam_inject.cli.options import PANELS
from simam_inject.errors import InjectError, NoMatchError, VerificationError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

DONE, NO_EFFECT, BAD_USAGE = 0, 1, 2
"""Exit codes: done; nothing matched or verification failed; bad usage, recipe, model or file."""
MAIN_JOB = "inject"
"""Name of the command that runs for a first word that is not a subcommand."""
_PIPE_WIDTH = 120
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a command found."""

    view: RenderableType | Sequence[RenderableType]
    """For people, part by part; a string is printed as it is."""
    data: Any = None
    """For programs: JSON types, paths and records."""
    ok: bool = True
    """False makes the exit code 1."""


class Step:
    """`step("planning")` begins the next step of a command. A bar on a terminal; elsewhere nothing is shown."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._begun, self._last_line = bar, -1, -_SECONDS_BETWEEN_LINES
        self._task = bar.add_task("", total=None)

    def __call__(self, words: str, of: int | None = None) -> None:
        """Begin the next step; the first one says how many there are."""
        self._begun += 1
        self._bar.update(self._task, completed=self._begun, total=of, description=words)

    def show(self, done: int, total: int, words: str) -> None:
        """How far a step is that takes hours; without a terminal, a line on stderr now and then."""
        self._bar.update(self._task, completed=done, total=total, description=words)
        is_due = time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES
        if self._bar.disable and (is_due or done == total):
            self._last_line = time.monotonic()
            typer.echo(words, err=True)


Action = Callable[[Any, Step], Report]


class MainJobGroup(TyperGroup):
    """A group that runs `MAIN_JOB` on other first words, and whose help is that command's, followed by the others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the main job's name in front of everything but a command, a slip of one, and the group's own options."""
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0] not in {*own, *self.commands}:
            has_argument = len(args) > 1 and not args[1].startswith("-")
            is_slip = has_argument and get_close_matches(args[0], {*self.commands} - {MAIN_JOB}, cutoff=0.7)
            args = args if is_slip else [MAIN_JOB, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the main job's arguments and options as the program's own."""
        shown = copy(self)
        shown.params = [*self.commands[MAIN_JOB].params, *self.params]
        shown.subcommand_metavar = ""
        TyperGroup.format_help(shown, ctx, formatter)


class _MainJobContext(typer.Context):
    @property
    def command_path(self) -> str:
        """What is typed for the main job: the name of its group alone."""
        return super().command_path if self.parent is None else self.parent.command_path


class MainJobCommand(TyperCommand):
    """The command `MAIN_JOB`, whose usage has the words that are typed."""

    context_class = _MainJobContext


def add_command(app: typer.Typer, name: str, action: Action, options: type, **settings: Any) -> None:
    """Register an action: its docstring is the help, each field of its options object an option or argument."""

    def command(**values: Any) -> None:
        run(action, options(**values))

    parameters = inspect.signature(options).parameters.values()
    for parameter in parameters:
        if parameter.default.default is False:  # a flag; Typer would add `--no-json` to `--json`
            parameter.default.param_decls = (f"--{parameter.name.replace('_', '-')}",)
    ordered = sorted(parameters, key=lambda parameter: PANELS.index(parameter.default.rich_help_panel))
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__doc__ = action.__doc__
    app.command(name, **settings)(command)


def run(action: Action, options: Any = None) -> None:
    """Do what a command says and print its report.

    What a library prints goes to stderr, so that stdout holds the report and nothing else. With `--json` that is one
    object, `{"error": ...}` for a mistake; with `--quiet` it is nothing.

    Raises:
        typer.Exit: Always, with the exit code.
    """
    wants_json, quiet = getattr(options, "json", False), getattr(options, "quiet", False)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings(), _bar(shown=not wants_json and not quiet) as bar:
            if quiet:
                warnings.simplefilter("ignore")
            report = action(options, Step(bar))
    except (InjectError, PermissionError) as error:  # of a file that is to be written or read
        show_error(str(error))
        if wants_json:
            typer.echo(json.dumps({"error": str(error)}))
        raise typer.Exit(NO_EFFECT if isinstance(error, (NoMatchError, VerificationError)) else BAD_USAGE) from None
    if wants_json:
        from simam_inject.reporting.formats import as_json

        typer.echo(json.dumps(as_json(report.data), indent=2))
    elif not quiet:
        _show(report.view)
    raise typer.Exit(DONE if report.ok else NO_EFFECT)


def _show(view: RenderableType | Sequence[RenderableType]) -> None:
    from rich.console import Console

    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if is_sized else _PIPE_WIDTH)
    for part in view if isinstance(view, list) else [view]:
        if isinstance(part, str):
            typer.echo(part, nl=not part.endswith("\n"))
        else:
            console.print(part)


def _bar(*, shown: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    is_off = not shown or not console.is_terminal
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=is_off)


def show_error(message: str) -> None:
    """Print a mistake's message on stderr."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
