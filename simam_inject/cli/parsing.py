"""What is written on the command line as values: sizes, numbers, times, names, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


class Size(tuple[int, ...]):
    """`3x224x224` -> (3, 224, 224): channels, then one to three spatial sizes."""

    __slots__ = ()

    def __new__(cls, text: str) -> Size:
        """Read a size."""
        parts = text.lower().split("x")
        if not 2 <= len(parts) <= 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(f"found {text!r}; write channels x height x width, e.g. 3x224x224")
        return super().__new__(cls, map(int, parts))

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Names(tuple[str, ...]):
    """`a, b` -> (a, b)."""

    __slots__ = ()

    def __new__(cls, text: str) -> Names:
        """Read what has commas between."""
        return super().__new__(cls, filter(None, map(str.strip, text.split(","))))


def parse_number(text: str) -> int | float:
    """A number as it was written: an integer stays one, since an integer lambda is probably a channel count."""
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; write a number, e.g. 1e-4") from None


def parse_time(text: str) -> float:
    """`2h`, `30m`, `90s` or `90` in seconds."""
    unit = {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1:])
    try:
        return float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        raise typer.BadParameter(f"write a time, e.g. 2h, 30m or 90s; found {text!r}") from None


def one_of(noun: str, *known: str) -> Callable[[Any], Any]:
    """A check that a value, or each of several, is one of a few; `cuda:1` counts as `cuda`."""

    def check(value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value:
            if name.partition(":")[0] not in known:
                raise typer.BadParameter(f"unknown {noun} {name!r}; choose from {', '.join(known)}")
        return value

    return check


def writable(*suffixes: str) -> Callable[[str], Path]:
    """A parser of a file in a folder that exists, with one of these suffixes if there are any."""

    def parse(text: str) -> Path:
        path = Path(text)
        if not path.parent.is_dir():
            raise typer.BadParameter(f"no such folder: {str(path.parent)!r}")
        if path.is_dir():
            raise typer.BadParameter(f"{text!r} is a folder")
        if suffixes and path.suffix not in suffixes:
            raise typer.BadParameter(f"found {text!r}; the file must end in {', '.join(suffixes)}")
        return path

    return parse


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, for the shell's completion."""
    from simam_inject.recipe import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]
