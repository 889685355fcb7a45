"""Names in a recipe: globs on paths and class names, kinds of operations, places in a block.

A glob has `*`, `?`, `[34]`, `[!34]` and `{a,b}`; `*` matches dots, too, so `layer3.*` is everything below `layer3`.
One digit in brackets at the end of a name is the number of a call: `*.relu[2]` is not `a.relu2`.
Braces are expanded into plain globs, which `fnmatch` turns into regular expressions with atomic groups: these take no
exponential time on any text.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal, Self, get_args

from simam_inject.errors import describe, did_you_mean
from simam_inject.kinds import FAMILIES, KINDS, NOT_OPERATIONS, find_kind

MAX_LENGTH = 200
MAX_ALTERNATIVES = 64
_BRACES = re.compile(r"\{([^{}]*)\}")
_OPERATION = re.compile(r"[A-Za-z_+][A-Za-z0-9_]*")
_NUMBER = re.compile(r"(?<=\w)\[(\d)\](?=:|$)")
_CALL = re.compile(r"(?P<name>.+)\[(?P<call>\d{1,4}|\*)\]")


class Glob(str):
    """A glob on a dotted path or a class name."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Raise a `ValueError` for unbalanced braces, too many alternatives, or too many characters."""
        if len(text) > MAX_LENGTH:
            raise ValueError(f"found a glob of {len(text)} characters; at most {MAX_LENGTH} are allowed")
        _compile(text)
        return super().__new__(cls, text)

    @property
    def is_wild(self) -> bool:
        """Whether it contains a wildcard, so that it may match more than its own text."""
        return not frozenset("*?[{").isdisjoint(self)

    def matches(self, text: str) -> bool:
        """The whole of `text` matches, case included; a text matches itself, brackets or not. `mul[1]` is `mul`."""
        texts = (text, f"{text}[1]") if self.endswith("[1]") else (text,)
        return self == text or any(map(self._on_paths.fullmatch, texts))

    def matches_any_case(self, text: str) -> bool:
        """The same with letter case ignored: the rule for class names."""
        return _compile(self.casefold()).fullmatch(text.casefold()) is not None

    def covers(self, path: str) -> bool:
        """`path`, or a module that contains it, matches: the rule for the filters `path` and `exclude`."""
        return self.matches(path) or any(part == self or self._on_paths.fullmatch(part) for part in lineage(path))

    @property
    def _on_paths(self) -> re.Pattern[str]:
        return _compile(_NUMBER.sub(r"[[]\1]", self))


def lineage(path: str) -> tuple[str, ...]:
    """The path, the path without its key and its call index, and every module above it, nearest first.

    >>> lineage("layer1.0.relu[2]")
    ('layer1.0.relu[2]', 'layer1.0.relu', 'layer1.0', 'layer1')
    >>> lineage("neck.fpn:0")
    ('neck.fpn:0', 'neck.fpn', 'neck')
    """
    value = path.partition(":")[0]
    module = value[: value.rindex("[")] if value.endswith("]") else value
    parts = module.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return tuple(dict.fromkeys((path, value, *above)))


@lru_cache(maxsize=1024)
def _compile(text: str) -> re.Pattern[str]:
    """One regular expression for all texts that the braces expand to."""
    texts = list(islice(_expand(text), MAX_ALTERNATIVES + 1))
    if len(texts) > MAX_ALTERNATIVES:
        raise ValueError(f"{text!r} expands to more than {MAX_ALTERNATIVES} alternatives; write a shorter list")
    if any("{" in part or "}" in part for part in texts):
        raise ValueError(f"{text!r} has an unbalanced brace; alternatives are written {{a,b}}")
    return re.compile("|".join(fnmatch.translate(part) for part in texts))


def _expand(text: str) -> Iterator[str]:
    """The texts that the braces expand to; the first innermost pair is expanded first."""
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    for choice in found[1].split(","):
        yield from _expand(text[: found.start()] + choice + text[found.end() :])


class Kind(str):
    """A name of operations: a kind, a family or a glob. Other spellings become the kind that they mean.

    >>> Kind("BatchNorm2d"), Kind("Concat"), Kind("*Norm")
    ('batch_norm', 'cat', '*norm')
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Raise a `ValueError` for what is neither a name nor a glob, and for a name that is almost a known one."""
        if text.lower() == "depthwise":
            raise ValueError("depthwise is a condition, not an operation; write conv2d with groups=depthwise")
        if Glob(text).is_wild:
            return super().__new__(cls, text.lower())
        kind = find_kind(text)
        near = "" if kind else did_you_mean(text, KINDS | FAMILIES.keys(), cutoff=0.75)
        if near or not _OPERATION.fullmatch(text):
            raise ValueError(
                f"found {describe(text)}; operations are named like conv2d, batch_norm, relu, add, cat or *norm, or by "
                f"family ({', '.join(FAMILIES)}){near}"
            )
        return super().__new__(cls, kind or text.lower())

    def includes(self, kind: str) -> bool:
        """An operation of this kind is meant."""
        if kind in NOT_OPERATIONS:
            return False
        return kind in FAMILIES[self] if self in FAMILIES else Glob(self).matches(kind)


_Word = Literal["output", "input", "residual"]


@dataclass(frozen=True, slots=True)
class BlockValue:
    """The output or input of a block, or its branch just before it joins the skip connection."""

    word: _Word
    key: str | None = None
    """Of `output`: one entry of a list, tuple or dict; None for everything that the block returns."""

    def __str__(self) -> str:
        return self.word if self.key is None else f"{self.word}:{self.key}"


@dataclass(frozen=True, slots=True)
class Child:
    """A child of the block, by its path inside the block, or an operation in its forward."""

    name: Glob
    call: int | None = None
    """Which call in one forward, from 1; 0 for every call; None for the only one."""

    def __str__(self) -> str:
        return self.name if self.call is None else f"{self.name}[{self.call or '*'}]"


def write_child(name: str) -> str:
    """The name of a child as `after` and `before` take it: in braces where it is a word for a value of the block.

    >>> write_child("conv2"), write_child("output"), write_child("output:0")
    ('conv2', '{output}', '{output}:0')
    """
    word, colon, key = name.partition(":")
    return f"{{{word}}}{colon}{key}" if word.lower() in get_args(_Word) else name


def parse_place(text: str) -> BlockValue | Child:
    """Read a name at `after` or `before`; a `ValueError` for what is not a glob, and for call number 0."""
    word, colon, key = text.partition(":")
    if word.lower() == "output":
        return BlockValue("output", key if colon else None)
    for block_value in (BlockValue("input"), BlockValue("residual")):
        if text.lower() == block_value.word:
            return block_value
    called = _CALL.fullmatch(text)
    if called is None:
        return Child(Glob(text))
    if called["call"] == "0":
        raise ValueError(f"found {describe(text)}; calls are counted from 1: {called['name']}[1] is the first")
    return Child(Glob(called["name"]), 0 if called["call"] == "*" else int(called["call"]))
