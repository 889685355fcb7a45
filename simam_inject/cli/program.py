"""One way from the words of a command line to a report, whose parts are printed in one place.

A command is a function `(options, step) -> Report`. `add_command` makes an option of each field of its options object;
`run` calls it, shows what it does on stderr, and prints the report on stdout.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from simam_inject.cli.options import PANELS
from simam_inject.errors import InjectError, NoMatchError, VerificationError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

DONE, NO_EFFECT, BAD_USAGE = 0, 1, 2
"""Exit codes: done; nothing matched or verification failed; bad usage, recipe, model or file."""
MAIN_JOB = "inject"
"""Name of the command that runs for a first word that is not a subcommand."""
FIRST_COMMANDS = """\
Add SimAM attention to a convolutional network. Start with:

  simam-inject sites resnet50                      list blocks and layers
  simam-inject resnet50 --after bottleneck         add SimAM, and verify
  simam-inject resnet50 --recipe paper --dry-run   preview a shipped recipe
  simam-inject recipes                             the shipped recipes

All options and commands: simam-inject --help"""
_PIPE_WIDTH = 120
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a command found."""

    view: RenderableType
    """For people; a string is printed as it is."""
    data: Mapping[str, Any] | None = None
    """For programs: JSON types, paths and records."""
    ok: bool = True
    """False makes the exit code 1."""
    error: str = ""
    """A message for stderr, after the report."""


class Step:
    """`step("planning")` begins the next step of a command. A bar on a terminal; elsewhere nothing is shown."""

    def __init__(self, bar: Progress | None = None) -> None:
        self._bar, self._begun, self._last_line = bar, -1, -_SECONDS_BETWEEN_LINES
        self._task = None if bar is None else bar.add_task("", total=None, visible=False)

    def __call__(self, words: str, of: int | None = None) -> None:
        """Begin the next step; the first one says how many there are."""
        self._begun += 1
        self._update(self._begun, of, words)

    def show(self, done: int, total: int, words: str) -> None:
        """How far a step is that takes hours; without a terminal, a line on stderr now and then."""
        self._update(done, total, words)
        is_due = time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES
        if self._bar is None and (is_due or done == total):
            self._last_line = time.monotonic()
            typer.echo(words, err=True)

    def _update(self, done: int, total: int | None, words: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=words, visible=True)


Action = Callable[[Any, Step], Report]


class MainJobGroup(TyperGroup):
    """A group that runs `MAIN_JOB` on other first words, and whose help is that command's, followed by the others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the main job's name in front where it is meant."""
        if not args and ctx.parent is None:
            typer.echo(FIRST_COMMANDS)
            ctx.exit()
        self._refuse_slips(ctx, args)
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = [MAIN_JOB, *args]
        return super().parse_args(ctx, args)

    def _refuse_slips(self, ctx: Any, args: list[str]) -> None:
        """A command that is almost one would be taken for a model, and `-after` for the option `-a`."""
        options = {
            option for command in self.commands.values() for parameter in command.params for option in parameter.opts
        }
        for arg in args:
            if f"-{arg.partition('=')[0]}" in options:
                ctx.fail(f"No such option: {arg} (did you mean -{arg}?)")
        two_words = len(args) > 1 and not args[1].startswith("-")
        near = get_close_matches(args[0], set(self.commands) - {MAIN_JOB}, n=1, cutoff=0.7) if two_words else []
        if near and args[0] not in self.commands:
            ctx.fail(f"No such command: {args[0]} (did you mean {near[0]}?)")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the main job's arguments and options as the program's own."""
        shown = copy(self)
        shown.params = [*self.commands[MAIN_JOB].params, *self.params]
        shown.subcommand_metavar = ""
        TyperGroup.format_help(shown, ctx, formatter)


def add_command(app: typer.Typer, name: str, action: Action, options: type, **settings: Any) -> None:
    """Register an action: its docstring is the help, each field of its options object an option or argument."""

    def command(**values: Any) -> None:
        run(action, options(**values))

    parameters = inspect.signature(options).parameters.values()
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
    _silence_libraries()
    try:
        with (
            redirect_stdout(sys.stderr),
            _warnings(shown=not quiet),
            _steps(shown=not wants_json and not quiet) as step,
        ):
            report = action(options, step)
    except (InjectError, PermissionError) as error:  # of a file that is to be written or read
        show_error(str(error))
        if wants_json:
            typer.echo(json.dumps({"error": str(error)}))
        raise typer.Exit(NO_EFFECT if isinstance(error, (NoMatchError, VerificationError)) else BAD_USAGE) from None
    if wants_json:
        from simam_inject.reporting.formats import as_json

        typer.echo(json.dumps(as_json(report.data), indent=2))
    elif isinstance(report.view, str) and not quiet:
        typer.echo(report.view, nl=not report.view.endswith("\n"))
    elif not quiet:
        _console().print(report.view, crop=False)  # lines of code to copy may be longer than the terminal is wide
    if report.error:
        show_error(report.error)
    raise typer.Exit(DONE if report.ok else NO_EFFECT)


@contextmanager
def _steps(*, shown: bool) -> Iterator[Step]:
    if not shown or not sys.stderr.isatty():
        yield Step()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=_console(stderr=True), transient=True, redirect_stdout=False) as bar:
        yield Step(bar)


@contextmanager
def _warnings(*, shown: bool) -> Iterator[None]:
    """A warning as one line, without the line of source that it came from; none at all where they are not shown."""
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    try:
        with warnings.catch_warnings():
            if not shown:
                warnings.simplefilter("ignore")
            yield
    finally:
        warnings.formatwarning = formatted


def _silence_libraries() -> None:
    """Libraries print banners, retries and install packages; a command's own message says what matters."""
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def show_error(message: str) -> None:
    """Print a mistake's message on stderr, never cut or wrapped by us."""
    from rich.text import Text

    _console(stderr=True).print(
        Text("error: ", style="bold red").append(message, style="not bold default"), soft_wrap=True
    )


def _console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; in a pipe wide enough that paths stay whole."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False)
