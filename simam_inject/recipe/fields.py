"""The types of a recipe's fields: what may be written there, and how an editor is told.

A field keeps what was written; the functions `*_of` read it. Each type is what a caller may pass, so that mypy accepts
`Rule(block="Bottleneck", after="conv2", where={"stage": [3, 4]})`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, WithJsonSchema
from typing_extensions import TypeAliasType

from simam_inject.kinds import FAMILIES, KINDS
from simam_inject.recipe.bounds import MAX_ENTRIES, MAX_NUMBER, TEST_PATTERN, parse_bounds
from simam_inject.recipe.names import Glob, parse_glob, parse_kinds
from simam_inject.recipe.wording import describe, did_you_mean, join_names

MAX_GLOBS = 100
MAX_KINDS = 16
MAX_TEXT = 4000
DEFAULT_E_LAMBDA = 1e-4
"""The class default of every SimAM in circulation."""
Structure = Literal["residual", "main", "decoder"]
STRUCTURES: tuple[str, ...] = get_args(Structure)


def entries_of(value: Any) -> tuple[Any, ...]:
    """A field that holds one thing or a list of them, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def globs_of(value: str | Sequence[str]) -> tuple[Glob, ...]:
    """A field of globs, read."""
    return tuple(parse_glob(text) for text in entries_of(value))


def _check_each(check: Callable[[Any], Any], most: int) -> PlainValidator:
    """One value or a list of at most `most`; each is replaced by what `check` returns of it, or refused by it."""

    def check_entries(value: object) -> Any:
        entries = entries_of(value)
        if not 1 <= len(entries) <= most and value != ():
            raise ValueError(f"found a list of {len(entries)} entries; allowed are 1 to {most}")
        checked = tuple(check(entry) for entry in entries)
        return checked if len(checked) != 1 else checked[0]

    return PlainValidator(check_entries)


def _check_structure(value: object) -> str:
    if not isinstance(value, str) or value not in STRUCTURES:
        near = did_you_mean(value, STRUCTURES) if isinstance(value, str) else ""
        raise ValueError(f"found {describe(value)}; allowed is {join_names(STRUCTURES)}, or a list of these{near}")
    return value


def _check_bounds(*, depthwise: bool) -> PlainValidator:
    return PlainValidator(lambda value: parse_bounds(value, depthwise=depthwise).source)


def _warn_of_channels(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        warnings.warn(
            f"e_lambda: {describe(value)} is probably a channel count, and makes the gate a constant. SimAM needs no "
            f"channel count: leave e_lambda out, or write a number with a point if the value is meant.",
            stacklevel=2,
        )
        return float(value) if value < 2**1000 else math.inf
    return value


def _one_or_list(entry: dict[str, Any], most: int) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [entry, {"type": "array", "items": entry, "minItems": 1, "maxItems": most}]})


_NUMBER = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
_TEST = f"\\s*{TEST_PATTERN}\\s*"
_TESTS = {"type": "string", "pattern": f"^{_TEST}(,{_TEST})*$"}
_KIND = {"anyOf": [{"enum": sorted(FAMILIES | dict.fromkeys(KINDS))}, {"type": "string", "minLength": 1}]}

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=MAX_TEXT)]
Globs = TypeAliasType(
    "Globs",
    Annotated[
        str | Sequence[str],
        _check_each(lambda text: parse_glob(text).text, MAX_GLOBS),
        _one_or_list({"type": "string", "minLength": 1}, MAX_GLOBS),
    ],
)
Structures = TypeAliasType(
    "Structures",
    Annotated[
        str | Sequence[str],
        _check_each(_check_structure, len(STRUCTURES)),
        _one_or_list({"enum": list(STRUCTURES)}, len(STRUCTURES)),
    ],
)
KindNames = TypeAliasType(
    "KindNames",
    Annotated[
        str | Sequence[str], _check_each(lambda text: parse_kinds(text).text, MAX_KINDS), _one_or_list(_KIND, MAX_KINDS)
    ],
)
Numbers = TypeAliasType(
    "Numbers",
    Annotated[
        int | str | Sequence[int | str],
        _check_bounds(depthwise=False),
        _one_or_list({"anyOf": [_NUMBER, _TESTS]}, MAX_ENTRIES),
    ],
)
Groups = TypeAliasType(
    "Groups",
    Annotated[
        int | str | Sequence[int | str],
        _check_bounds(depthwise=True),
        _one_or_list({"anyOf": [{"const": "depthwise"}, _NUMBER, _TESTS]}, MAX_ENTRIES),
    ],
)
Lambda = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True), BeforeValidator(_warn_of_channels)]
