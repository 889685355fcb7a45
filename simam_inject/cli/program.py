"""How every command runs: its options become a record, its work is shown as progress, and its report is printed.

A command is a function `(options, step) -> Outcome` whose docstring is its help. It calls `step(description)` at the
start of each step. Whatever other code prints meanwhile, such as a user's factory, goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from typer.core import TyperGroup

from simam_inject.errors import InjectError, ModelError, NoMatchError, VerificationError
from simam_inject.zoo.names import find_library

if TYPE_CHECKING:
    from simam_inject.planning.tables import Table

FIRST = """\
Add SimAM attention to a convolutional network. Start with:

  simam-inject sites resnet50                      list blocks and layers
  simam-inject resnet50 --after bottleneck         add SimAM, and verify
  simam-inject resnet50 --recipe paper --dry-run   preview a shipped recipe
  simam-inject recipes                             the shipped recipes

All options and commands: simam-inject --help"""
Step = Callable[[str], None]
_PIPE_WIDTH = 120
"""Characters of a line where the output is not a terminal."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has to say."""

    parts: Iterable[Table | str] = ()
    """For people: tables, and texts, which are wrapped unless they are indented, have several lines or name a file."""
    data: dict[str, Any] = field(default_factory=dict)
    """For `--json`."""
    ok: bool = True
    """False: something is wrong, and the exit code is 1."""


def command(run: Callable[[Any, Step], Outcome]) -> Callable[..., None]:
    """The function that Typer calls, with a parameter for each field of the record that `run` takes."""
    record, *_ = get_type_hints(run).values()

    def call(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            execute(run, record(**values))

    options: dict[str, Any] = {each.name: each.default for each in fields(record)}
    parsed = {name: str for name, option in options.items() if option.parser}  # Typer takes the type from the parser
    call.__annotations__ = {"context": typer.Context, **get_type_hints(record), **parsed}
    parameters = [Parameter(name, Parameter.KEYWORD_ONLY, default=option) for name, option in options.items()]
    call.__signature__ = Signature([Parameter("context", Parameter.KEYWORD_ONLY), *parameters])  # type: ignore[attr-defined]
    paragraphs = (run.__doc__ or "").split("\n\n")
    call.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return call


class ModelGroup(TyperGroup):
    """Commands by name, and a command of its own for any other first word: a model.

    The parameters of that command are those of the group. They are left out where the first word is a command.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Decide by the first word. A misspelled command is one, so that it is answered with the right name.

        Flags before a command, such as `--json`, are those of the command.
        """
        if not args and ctx.parent is None and not ctx.resilient_parsing:
            typer.echo(FIRST)
            ctx.exit()
        options = [param for param in self.params if getattr(param, "is_flag", False) and not param.is_eager]
        flags = {name for option in options for name in option.opts}
        start = next((place for place, word in enumerate(args) if word not in flags), 0)
        word = args[start] if args else ""
        is_bare = word.replace("-", "_").isidentifier() and word[0] != "-" and not Path(word).exists()
        is_command = word in self.commands or (is_bare and bool(get_close_matches(word, self.commands, cutoff=0.8)))
        if is_command:
            args = [word, *args[:start], *args[start + 1 :]]
        ctx.meta[self] = ctx.allow_interspersed_args = not is_command
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # for an option of other commands, name these
            option = getattr(error, "option_name", None)
            owners = [name for name, one in self.commands.items() if any(option in param.opts for param in one.params)]
            if owners:
                vars(error)["possibilities"] = [f"{ctx.command_path} {name} {option}" for name in owners]
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A word after the model is not a command: say what it may be, or that the first word is not a model."""
        if not ctx.params.get("model"):  # also None, where a shell asks for completions
            return super().resolve_command(ctx, args)
        from simam_inject.recipe import shipped_recipes

        model, word, program = ctx.params["model"], args[0], ctx.command_path
        answer = f"{program} {model} takes no further word, but found {word!r}; use --recipe NAME or --after BLOCK"
        if word in self.commands and any(param.name == "model" for param in self.commands[word].params):
            answer = f"the command comes before the model: {program} {word} {model}"
        elif word in shipped_recipes():
            answer = f"a recipe is an option: {program} {model} --recipe {word}"
        try:
            find_library(model)
        except ModelError:
            usage = "simam-inject MODEL --recipe NAME adds SimAM and verifies it; with --dry-run, it shows the plan"
            answer = f"{model!r} is neither a command nor a model. {usage}"
        return ctx.fail(answer)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; in the context of a command only those without a value, such as `--help`."""
        params = super().get_params(ctx)
        is_own = ctx.command is self and ctx.meta.get(self, True)
        return params if is_own else [param for param in params if not param.expose_value]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage of the command of its own, if it takes a model."""
        pieces = super().collect_usage_pieces(ctx)
        return pieces[:-1] if any(param.param_type_name == "argument" for param in self.params) else pieces


def group(run: Callable[[Any, Step], Outcome]) -> typer.Typer:
    """Commands, and one for any first word that is none of them."""
    made = typer.Typer(cls=ModelGroup, pretty_exceptions_enable=False)
    made.callback(invoke_without_command=True)(command(run))
    return made


def execute(run: Callable[[Any, Step], Outcome], options: Any) -> None:
    """Run a command and print its report. Exits with 1 if nothing matched or a check failed, with 2 for a mistake."""
    as_json, quiet = getattr(options, "json", False), getattr(options, "quiet", False)
    try:
        with _working(shown=not as_json and not quiet, quiet=quiet) as step:
            report = run(options, step)
            parts = () if as_json or quiet else tuple(report.parts)
    except (InjectError, OSError) as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error)}))
        typer.secho("error", fg="red", bold=True, nl=False, err=True)
        note(f": {error}")
        raise typer.Exit(1 if isinstance(error, (NoMatchError, VerificationError)) else 2) from None
    if as_json:
        typer.echo(json.dumps(report.data, indent=2))
    for part in parts:
        _show(part)
    if not report.ok:
        raise typer.Exit(1)


def note(text: str) -> None:
    """Print a line beside the report, for people."""
    typer.echo(text, err=True)


def _show(part: Table | str) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    is_code = isinstance(part, str) and ("\n" in part or part.startswith(("  ", "wrote ", "recipe: ")))
    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(markup=False, highlight=False, emoji=False, width=None if is_sized else _PIPE_WIDTH)
    if not isinstance(part, str):  # rows of a table are longer than a narrow terminal, but nothing is cut
        roomy = console.options.update(max_width=_PIPE_WIDTH)
        console.width = max(console.width, Measurement.get(console, roomy, part).minimum)
    console.print(part.rstrip() if isinstance(part, str) else part, soft_wrap=is_code)


@contextlib.contextmanager
def _working(*, shown: bool, quiet: bool) -> Iterator[Step]:
    """Show the current step on a terminal, and send to stderr what other code prints."""
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), transient=True, disable=not (shown and sys.stderr.isatty()))
    task = progress.add_task("", total=None)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), progress:
        if quiet:
            warnings.simplefilter("ignore")
        yield lambda description: progress.update(task, description=description)
