"""The surroundings of a command: where words go, what is shown while it works, what a mistake turns into."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import typer

from simam_inject.errors import InjectError, NoMatchError, VerificationError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DONE, NO_EFFECT, BAD_USAGE = 0, 1, 2
"""Exit codes: done; nothing matched or verification failed; bad usage, recipe, model or file."""
_PIPE_WIDTH = 120
_Step = Callable[[str], None]


@contextmanager
def working(steps: int, *, quiet: bool = False) -> Iterator[_Step]:
    """Run a command's work: a progress bar on the terminal, and one message for what the user did wrong.

    What a library prints goes to stderr, so that stdout holds the report and nothing else.

    Args:
        steps: How often the work will say what it does next.
        quiet: Only JSON goes to stdout: no progress, and a mistake as `{"error": ...}` beside its message on stderr.

    Yields:
        A function that says what the work does next.

    Raises:
        typer.Exit: With the exit code, after the message, for any `InjectError`.
    """
    _hush_libraries()
    try:
        with redirect_stdout(sys.stderr), _plain_warnings(), _progress(steps, quiet) as step:
            yield step
    except InjectError as error:
        show_error(str(error))
        if quiet:
            typer.echo(json.dumps({"error": str(error)}))
        raise typer.Exit(NO_EFFECT if isinstance(error, (NoMatchError, VerificationError)) else BAD_USAGE) from None


@contextmanager
def _progress(steps: int, quiet: bool) -> Iterator[_Step]:
    if quiet or not sys.stderr.isatty():
        yield _say_nothing
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=_console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=steps, completed=-1)

        def step(description: str) -> None:
            progress.update(task, advance=1, description=description)

        yield step


def _say_nothing(_description: str) -> None:
    """What a step says where nobody looks."""


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning as one line for the person at the terminal, without the line of source it came from."""
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = formatted


def _hush_libraries() -> None:
    """Libraries announce themselves, retry aloud and install packages; a command's own message says what matters."""
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def show(report: RenderableType) -> None:
    """Print a report on stdout."""
    _console().print(report)


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
