"""YAML text -> JSON types, for texts that nobody vouches for.

The parser's events are read one by one and never turned into nodes or objects: no tag has an effect, and size, depth
and the copies that aliases stand for are counted while reading, so that a hostile text ends in an error and not in a
hang. Numbers are YAML 1.2's: `1e-4` is a number, `on` and `12:30` are texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from simam_inject.errors import RecipeError
from simam_inject.recipe.problems import Location, write_path
from simam_inject.recipe.wording import describe

MAX_BYTES = 64 * 1024
MAX_DEPTH = 12
MAX_VALUES = 10_000
MAX_DIGITS = 40
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_COMPARISON = re.compile(r"(?:(\w+: +)|- +|[\[,] *)((?:[<>]=?|!=) *[0-9x]+(?:, *[<>]=? *\d+)*)")
"""A comparison that stands without quotes: `>` begins a block of text for YAML, `!` a tag."""
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", "+.inf", ".Inf"), float("inf")),
    **dict.fromkeys((".nan", ".NaN"), float("nan")),
    "-.inf": float("-inf"),
}


def read_yaml(data: bytes | str) -> Any:
    """The one document of a YAML text, as dicts, lists, texts, numbers, booleans and None.

    Raises:
        RecipeError: not UTF-8, not YAML, too large or deep, a key given twice, a tag, or more than one document.
    """
    text = _decode(data)
    try:
        return _Reading(yaml.parse(text, Loader=yaml.SafeLoader)).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(
            f"recipe: not valid YAML{place}: {error.problem or error.context}{_hint(text, error)}"
        ) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe: not valid YAML: {str(error).splitlines()[0]:.200}") from None


def _decode(data: bytes | str) -> str:
    if len(data) > MAX_BYTES:
        raise RecipeError(f"recipe: larger than {MAX_BYTES // 1024} KiB; a recipe is a page of text")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        if len(text.encode()) > MAX_BYTES:
            raise RecipeError(f"recipe: larger than {MAX_BYTES // 1024} KiB; a recipe is a page of text")
    except UnicodeError as error:
        raise RecipeError(f"recipe: not UTF-8 text ({_reason(error)}); save the file as UTF-8") from None
    return text


def _reason(error: UnicodeError) -> str:
    return (
        f"{error.reason} at {error.start}" if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else str(error)
    )


def _hint(text: str, error: yaml.MarkedYAMLError) -> str:
    """Advice from the line where reading stopped; at the end of the text there is none."""
    lines = text.splitlines()
    number = error.problem_mark.line if error.problem_mark else len(lines)
    line = lines[number] if number < len(lines) else ""
    if "\t" in line:
        return "; YAML indents with spaces, not tabs"
    if comparison := _COMPARISON.search(line):
        return f'; put comparisons in quotes: {comparison[1] or ""}"{comparison[2]}"'
    if "*" in line or "{" in line or "[" in line:
        return "; put globs and patterns in quotes: path: '*.conv2'"
    return ""


@dataclass(slots=True)
class _Reading:
    """One pass over the events."""

    events: Iterator[Event]
    values: int = 0
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    """What each anchor stands for, and how many values that is."""

    def read(self) -> Any:
        documents = 0
        result: Any = None
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise RecipeError("recipe: more than one YAML document; keep one and remove '---'")
                result = self._build(next(self.events), ())
        if not documents:
            raise RecipeError("recipe: the text is empty; a recipe is a mapping with 'rules'")
        return result

    def _build(self, event: Event, place: Location) -> Any:
        if isinstance(event, AliasEvent):
            return self._build_alias(event, place)
        self._count(1, place)
        if len(place) > MAX_DEPTH:
            raise RecipeError(f"{write_path(place, 'recipe')}: nested more than {MAX_DEPTH} levels deep")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise RecipeError(
                f"{write_path(place, 'recipe')}: found the tag {describe(tag)}; recipes have no tags{_quoted(tag)}"
            )
        before = self.values
        if isinstance(event, ScalarEvent):
            value = _resolve(event, place)
        elif isinstance(event, SequenceStartEvent):
            value = self._build_list(place)
        else:
            value = self._build_mapping(place)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = (value, self.values - before + 1)
        return value

    def _build_list(self, place: Location) -> list[Any]:
        entries: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            entries.append(self._build(event, (*place, len(entries))))
        return entries

    def _build_mapping(self, place: Location) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise RecipeError(f"{write_path(place, 'recipe')}: found a key that is not a text{_braces(event)}")
            key = event.value
            if key in mapping:
                raise RecipeError(
                    f"{write_path((*place, key), 'recipe')}: the key is there twice{_line(event)}; keep one"
                )
            self._count(1, place)
            mapping[key] = self._build(next(self.events), (*place, key))
        return mapping

    def _build_alias(self, event: AliasEvent, place: Location) -> Any:
        if event.anchor not in self.anchors:
            raise RecipeError(
                f"{write_path(place, 'recipe')}: found the alias *{event.anchor:.40}, which stands for nothing above "
                "it; a glob that starts with '*' is written in quotes"
            )
        value, size = self.anchors[event.anchor]
        self._count(size, place)
        return value

    def _count(self, values: int, place: Location) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise RecipeError(
                f"{write_path(place, 'recipe')}: more than {MAX_VALUES} values; a recipe is a page of text"
            )


def _resolve(event: ScalarEvent, place: Location) -> Any:
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) or _FLOAT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise RecipeError(f"{write_path(place, 'recipe')}: found a number of more than {MAX_DIGITS} characters")
        return int(text) if _INTEGER.fullmatch(text) else float(text)
    return text


def _quoted(tag: str) -> str:
    return f'; put comparisons in quotes: "{tag}"' if re.fullmatch(r"!=?\d+", tag) else ""


def _line(event: Event) -> str:
    return f" (line {event.start_mark.line + 1})" if event.start_mark else ""


def _braces(event: Event) -> str:
    flow = isinstance(event, MappingStartEvent) and event.flow_style
    return f"{_line(event)}" + ("; a glob that starts with '{' is written in quotes" if flow else "")
