"""Globs on dotted paths and class names: `*`, `?`, `[34]`, `[!34]`, `{a,b}`.

`*` crosses dots, so `layer3.*` is everything below `layer3`. Braces are expanded into plain globs first; each becomes
one regular expression with atomic groups (`fnmatch` writes it), so that no text makes the search explode.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import lru_cache

from simam_inject.recipe.wording import describe

MAX_LENGTH = 200
MAX_ALTERNATIVES = 64
_WILD = frozenset("*?[{")


@dataclass(frozen=True, slots=True)
class Glob:
    """One glob. Make it with `parse_glob`, which refuses what cannot be expanded."""

    text: str

    @property
    def is_wild(self) -> bool:
        """It holds a wildcard, so that it may match more than its own text."""
        return not _WILD.isdisjoint(self.text)

    def matches(self, text: str) -> bool:
        """The whole of `text` matches, letter case included; a text always matches itself, brackets or not."""
        return text == self.text or _compile(self.text).fullmatch(text) is not None

    def matches_any_case(self, text: str) -> bool:
        """The same with letter case ignored: the rule for class names."""
        return Glob(self.text.casefold()).matches(text.casefold())

    def covers(self, path: str) -> bool:
        """`path`, or a module that contains it, matches: the rule for the filters `path` and `exclude`."""
        return any(self.matches(part) for part in lineage(path))

    def __str__(self) -> str:
        return self.text


def lineage(path: str) -> tuple[str, ...]:
    """The path, the path without its call index, and every module above it, nearest first.

    >>> lineage("layer1.0.relu[2]")
    ('layer1.0.relu[2]', 'layer1.0.relu', 'layer1.0', 'layer1')
    >>> lineage("neck.fpn:0")
    ('neck.fpn:0', 'neck.fpn', 'neck')
    """
    module, colon, _ = path.partition(":")
    if colon:
        return (path, *lineage(module))
    whole = (path,) if "[" not in path.rpartition(".")[2] else (path, path[: path.rindex("[")])
    parts = whole[-1].split(".")
    return (*whole, *(".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)))


def parse_glob(text: object) -> Glob:
    """Check `text` and return it as a glob.

    Raises:
        ValueError: not a text, empty, too long, unbalanced braces, or too many alternatives.
    """
    if not isinstance(text, str):
        raise ValueError(f"found {describe(text)}; a glob is a text such as 'layer[34].*'")
    if not text.strip():
        raise ValueError("found an empty text; a glob is a text such as 'layer[34].*' or '*'")
    if len(text) > MAX_LENGTH:
        raise ValueError(f"found a glob of {len(text)} characters; at most {MAX_LENGTH} are allowed")
    glob = Glob(text.strip())
    _compile(glob.text)
    return glob


@lru_cache(maxsize=1024)
def _compile(text: str) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(plain) for plain in _expand(text)))


def _expand(text: str) -> list[str]:
    """All texts that the braces of `text` stand for; an innermost pair is expanded at a time."""
    done: list[str] = []
    waiting = [text]
    while waiting:
        current = waiting.pop()
        opened, closed = _innermost(current, text)
        if closed < 0:
            done.append(current)
        else:
            choices = current[opened + 1 : closed].split(",")
            waiting += [current[:opened] + choice + current[closed + 1 :] for choice in choices]
        if len(done) + len(waiting) > MAX_ALTERNATIVES:
            raise ValueError(f"{text!r} stands for more than {MAX_ALTERNATIVES} alternatives; write a shorter list")
    return done


def _innermost(current: str, text: str) -> tuple[int, int]:
    """Positions of the first closed pair of braces, or (-1, -1)."""
    closed = current.find("}")
    opened = current.rfind("{", 0, closed) if closed >= 0 else -1
    if (opened < 0) != (closed < 0) or (closed < 0 and "{" in current):
        raise ValueError(f"{text!r} has a brace without its partner; alternatives are written {{a,b}}")
    return opened, closed
