"""The types of a recipe's fields: what may be written there.

A field keeps what was written; a check that fails says what is allowed. Each type is what a caller may pass, so that
mypy accepts `Rule(block="Bottleneck", after="conv2", where={"stage": [3, 4]})`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, StringConstraints
from typing_extensions import TypeAliasType

from simam_inject.recipe.bounds import MAX_NUMBER, TEST_PATTERN, parse_bounds
from simam_inject.recipe.names import parse_glob, parse_kinds
from simam_inject.recipe.wording import describe, did_you_mean, join_names

DEFAULT_E_LAMBDA = 1e-4
"""The class default of every SimAM in circulation."""
Structure = Literal["residual", "main", "decoder"]
STRUCTURES: tuple[str, ...] = get_args(Structure)


def entries_of(value: Any) -> tuple[Any, ...]:
    """A field that holds one thing or a list of them, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _check_each(check: Callable[[Any], Any], most: int) -> BeforeValidator:
    """One value or a list of at most `most`; each is replaced by what `check` returns of it, or refused by it."""

    def check_entries(value: object) -> Any:
        entries = entries_of(value)
        if not 1 <= len(entries) <= most:
            raise ValueError(f"found a list of {len(entries)} entries; expected 1 to {most}")
        checked = tuple(check(entry) for entry in entries)
        return checked if len(checked) != 1 else checked[0]

    return BeforeValidator(check_entries)


def _check_structure(value: object) -> str:
    if not isinstance(value, str) or value not in STRUCTURES:
        near = did_you_mean(value, STRUCTURES) if isinstance(value, str) else ""
        raise ValueError(f"found {describe(value)}; expected {join_names(STRUCTURES)}, or a list of these{near}")
    return value


def _warn_of_channels(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        warnings.warn(
            f"e_lambda: {describe(value)} is probably a channel count, and makes the gate a constant. SimAM needs no "
            "channel count: leave e_lambda out, or write a decimal point if the value is intended.",
            stacklevel=2,
        )
        return float(value) if value < 2**1000 else math.inf
    return value


_TEST = rf"\s*{TEST_PATTERN}\s*"
_Name = Annotated[str, Field(min_length=1)]
_Number = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
_Test = Annotated[str, Field(pattern=f"^{_TEST}(,{_TEST})*$")]

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=4000)]
Globs = TypeAliasType(
    "Globs",
    Annotated[
        _Name | Annotated[Sequence[_Name], Field(min_length=1, max_length=100)],
        _check_each(lambda text: parse_glob(text).text, 100),
    ],
)
Structures = TypeAliasType(
    "Structures",
    Annotated[Structure | Annotated[Sequence[Structure], Field(min_length=1)], _check_each(_check_structure, 3)],
)
KindNames = TypeAliasType(
    "KindNames",
    Annotated[
        _Name | Annotated[Sequence[_Name], Field(min_length=1, max_length=16)],
        _check_each(lambda text: parse_kinds(text).text, 16),
    ],
)
Numbers = TypeAliasType(
    "Numbers",
    Annotated[
        _Number | _Test | Annotated[Sequence[_Number | _Test], Field(min_length=1, max_length=64)],
        BeforeValidator(lambda value: parse_bounds(value).source),
    ],
)
_Depthwise = Literal["depthwise"]
Groups = TypeAliasType(
    "Groups",
    Annotated[
        _Number | _Depthwise | _Test | Annotated[Sequence[_Number | _Depthwise | _Test], Field(min_length=1)],
        BeforeValidator(lambda value: parse_bounds(value, depthwise=True).source),
    ],
)
Lambda = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True), BeforeValidator(_warn_of_channels)]
