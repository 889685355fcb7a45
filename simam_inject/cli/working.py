"""What surrounds a command: where its output goes, what is shown while it works, what a mistake turns into."""

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
Step = Callable[[str], None]


@contextmanager
def working(steps: int, *, as_json: bool = False, quiet: bool = False) -> Iterator[Step]:
    """Run a command's work: a progress bar on the terminal, and one message for a user's mistake.

    What a library prints goes to stderr, so that stdout holds the report and nothing else.

    Args:
        steps: How many steps the work has.
        as_json: Only JSON goes to stdout: no progress, and a mistake as `{"error": ...}` beside its message on stderr.
        quiet: No progress and no warnings.

    Yields:
        A function that begins the next step and takes its description.

    Raises:
        typer.Exit: With the exit code, after the message, for any `InjectError`.
    """
    _silence_libraries()
    try:
        with (
            redirect_stdout(sys.stderr),
            _warnings(shown=not quiet),
            _progress(steps, shown=not as_json and not quiet) as step,
        ):
            yield step
    except InjectError as error:
        show_error(str(error))
        if as_json:
            typer.echo(json.dumps({"error": str(error)}))
        raise typer.Exit(NO_EFFECT if isinstance(error, (NoMatchError, VerificationError)) else BAD_USAGE) from None


@contextmanager
def _progress(steps: int, *, shown: bool) -> Iterator[Step]:
    if not shown or not sys.stderr.isatty():
        yield lambda _description: None
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
        task = progress.add_task("", total=steps)
        begun = -1

        def step(description: str) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, completed=begun, description=description)

        yield step


@contextmanager
def _warnings(*, shown: bool) -> Iterator[None]:
    """A warning as one line, without the line of source that it came from; none at all where they are not shown."""
    if not shown:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        return
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = formatted


def _silence_libraries() -> None:
    """Libraries print banners, retries and install packages; a command's own message says what matters."""
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def show(report: RenderableType) -> None:
    """Print a report on stdout. Lines of code to copy may be longer than the terminal is wide."""
    _console().print(report, crop=False)


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
