"""Parts of error messages: what was found, and which names are similar. Short and safe for any value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NOUNS: dict[type, str] = {dict: "a mapping", list: "a list", tuple: "a list", set: "a set"}


def describe(value: object) -> str:
    """The value as a message shows it: short, on one line, and never by its own `repr`."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if value.bit_length() < 128 else "a number of more than 38 digits"
    if isinstance(value, float):
        return repr(value)
    return _NOUNS.get(type(value), f"a value of type {type(value).__name__}")


def nearest(name: str, names: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> tuple[str, ...]:
    """The names most similar to `name`, letter case ignored, the most similar first."""
    by_fold = {known.casefold(): known for known in sorted(names)}
    near = difflib.get_close_matches(name[:100].casefold(), list(by_fold), n=count, cutoff=cutoff)
    return tuple(by_fold[fold] for fold in near)


def did_you_mean(name: object, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` or an empty text."""
    near = nearest(name, names, count=1, cutoff=cutoff) if isinstance(name, str) else ()
    return f"; did you mean {near[0]!r}?" if near else ""


def join_names(names: Iterable[object], last: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    *init, final = map(str, names)
    return f"{', '.join(init)} {last} {final}" if init else final
