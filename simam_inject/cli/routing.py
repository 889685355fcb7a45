"""`simam-inject MODEL ...` beside `simam-inject sites MODEL`: a first word that is no subcommand is a model."""

from __future__ import annotations

from copy import copy
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

MAIN_JOB = "inject"
"""Name of the command that runs for a first word that is no subcommand."""
FIRST_COMMANDS = """\
Add SimAM attention to a convolutional network. Start with:

  simam-inject sites resnet50                      list blocks and layers
  simam-inject resnet50 --after bottleneck         add SimAM, and verify
  simam-inject resnet50 --recipe paper --dry-run   preview a shipped recipe
  simam-inject recipes                             the shipped recipes

All options and commands: simam-inject --help"""


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
