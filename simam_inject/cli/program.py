"""How a command is called: its options are read, it is run with a progress bar, and its report is printed.

A command is a function `(options, step) -> Report`. `add_command` turns each field of its options object into an
option; `run` calls it, shows the progress on stderr, and prints the report on stdout.
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
from dataclasses import asdict, dataclass, is_dataclass
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
    """What a command prints."""

    view: Sequence[RenderableType]
    """For people, part by part; a string is printed as it is."""
    data: Any = None
    """For programs: what `json` can write, paths and dataclasses."""
    ok: bool = True
    """False makes the exit code 1."""


class Step:
    """`step("planning")` begins the next step of a command. Shown as a bar on a terminal, and nowhere else."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._begun, self._last_line = bar, -1, -_SECONDS_BETWEEN_LINES
        self._task = bar.add_task("", total=None)

    def __call__(self, words: str, of: int | None = None) -> None:
        """Begin the next step; the first call says how many there are."""
        self._begun += 1
        self._bar.update(self._task, completed=self._begun, total=of, description=words)

    def show(self, done: int, total: int, words: str) -> None:
        """Show how far a step is that takes hours; without a terminal, by a line on stderr every 30 seconds."""
        self._bar.update(self._task, completed=done, total=total, description=words)
        is_due = time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES
        if self._bar.disable and (is_due or done == total):
            self._last_line = time.monotonic()
            typer.echo(words, err=True)


Action = Callable[[Any, Step], Report]


class MainJobGroup(TyperGroup):
    """A group that runs `MAIN_JOB` on other first words, and whose help is that command's, followed by the others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the main job's name unless the first word is a command, nearly one, or an option of the group."""
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0] not in {*own, *self.commands}:
            has_argument = len(args) > 1 and not args[1].startswith("-")
            is_typo = has_argument and get_close_matches(args[0], {*self.commands} - {MAIN_JOB}, cutoff=0.7)
            args = args if is_typo else [MAIN_JOB, *args]
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
        """What the user types for the main job: the name of its group alone."""
        return super().command_path if self.parent is None else self.parent.command_path


class MainJobCommand(TyperCommand):
    """The command `MAIN_JOB`, which is typed without its name."""

    context_class = _MainJobContext


def add_command(app: typer.Typer, name: str, action: Action, options: type) -> None:
    """Register an action: its docstring is the help, each field of its options object an option or argument."""

    def command(**values: Any) -> None:
        run(action, options(**values))

    parameters = []
    for parameter in inspect.signature(options).parameters.values():
        if parameter.default.default is False:  # a flag; Typer would add `--no-json` to `--json`
            parameter.default.param_decls = (f"--{parameter.name.replace('_', '-')}",)
        # Typer would read the text of a tuple by itself, without the parser.
        parameters.append(parameter.replace(annotation=Any) if parameter.default.parser else parameter)
    parameters.sort(key=lambda parameter: PANELS.index(parameter.default.rich_help_panel))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = action.__doc__
    is_main_job = name == MAIN_JOB
    kind = MainJobCommand if is_main_job else TyperCommand
    app.command(name, cls=kind, hidden=is_main_job, no_args_is_help=is_main_job)(command)


def run(action: Action, options: Any = None) -> None:
    """Call an action and print its report.

    Whatever libraries print goes to stderr, so that stdout contains the report and nothing else. With `--json` that is
    one object, `{"error": ...}` for a mistake; with `--quiet` nothing.

    Raises:
        typer.Exit: Always, with the exit code.
    """
    wants_json, quiet = getattr(options, "json", False), getattr(options, "quiet", False)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings(), _bar(shown=not wants_json and not quiet) as bar:
            if quiet:
                warnings.simplefilter("ignore")
            report = action(options, Step(bar))
    except (InjectError, OSError) as error:  # the latter of a file to read or to write
        show_error(str(error))
        if wants_json:
            typer.echo(json.dumps({"error": str(error)}))
        raise typer.Exit(NO_EFFECT if isinstance(error, (NoMatchError, VerificationError)) else BAD_USAGE) from None
    if wants_json:
        typer.echo(json.dumps(report.data, default=_to_json, indent=2))
    elif not quiet:
        _show(report.view)
    raise typer.Exit(DONE if report.ok else NO_EFFECT)


def _to_json(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) else str(value)  # type: ignore[arg-type]


def _show(view: Sequence[RenderableType]) -> None:
    from rich.console import Console

    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if is_sized else _PIPE_WIDTH)
    for part in view:
        if isinstance(part, str):
            typer.echo(part.removesuffix("\n"))
        else:
            console.print(part)


def _bar(*, shown: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text)
    console = Console(stderr=True)
    is_off = not shown or not console.is_terminal
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=is_off)


def show_error(message: str) -> None:
    """Print a mistake's message on stderr."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
