"""Conditions on whole numbers: `3`, `">=64"`, `">=8, <=32"`, `"1x7"`, `[8, 16, 32]`, and `depthwise` for groups.

A list is "any of these"; a text with commas is "all of these". A fact with several dimensions (a map of 56x56, a
kernel of 3x3) satisfies a single number when each dimension does.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simam_inject.recipe.wording import describe

MAX_NUMBER = 2**31 - 1
MAX_ENTRIES = 64
FORMS = "a whole number, a comparison such as '>=64' or '>=8, <=32', a size such as '1x7', or a list of these"
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
TEST_PATTERN = r"(>=|<=|!=|==|>|<|=)?\s*(\d{1,10}(?:x\d{1,10}){0,2})"
_TEST = re.compile(TEST_PATTERN)

Fact = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison: an operator and one number for every dimension, or one number for each."""

    sign: str
    dims: tuple[int, ...]

    def holds(self, fact: Fact) -> bool:
        """The fact satisfies it in every dimension."""
        facts = fact if isinstance(fact, tuple) else (fact,)
        if self.sign == "!=":
            return not Comparison("==", self.dims).holds(fact)
        if len(self.dims) not in (1, len(facts)):
            return False
        dims = self.dims if len(self.dims) == len(facts) else self.dims * len(facts)
        return all(_OPERATORS[self.sign](found, wanted) for found, wanted in zip(facts, dims, strict=True))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be. Make it with `parse_bounds`."""

    source: int | str | tuple[int | str, ...]
    """As it was written, a list as a tuple."""
    choices: tuple[tuple[Comparison, ...], ...]
    """Any of these; of each, all comparisons."""
    depthwise: bool = False
    """`depthwise` is among the choices (groups only)."""

    def admits(self, fact: Fact, *, depthwise: bool = False) -> bool:
        """The fact satisfies one of the choices."""
        if self.depthwise and depthwise:
            return True
        return any(all(test.holds(fact) for test in choice) for choice in self.choices)

    def __str__(self) -> str:
        if isinstance(self.source, tuple):
            return " or ".join(str(entry) for entry in self.source)
        return str(self.source)


def parse_bounds(value: object, *, depthwise: bool = False) -> Bounds:
    """Check a condition as it stands in a recipe; `depthwise` says whether that word is allowed.

    Raises:
        ValueError: not one of the forms, or a number too large.
    """
    forms = FORMS + (", or 'depthwise'" if depthwise else "")
    if isinstance(value, list | tuple):
        if not 1 <= len(value) <= MAX_ENTRIES:
            raise ValueError(f"found a list of {len(value)} entries; allowed are 1 to {MAX_ENTRIES}")
        entries = tuple(_parse_entry(entry, depthwise, forms) for entry in value)
    else:
        entries = (_parse_entry(value, depthwise, forms),)
    sources = tuple(source for source, _ in entries)
    return Bounds(
        source=sources if isinstance(value, list | tuple) else sources[0],
        choices=tuple(tests for _, tests in entries if tests),
        depthwise=any(not tests for _, tests in entries),
    )


def _parse_entry(value: object, depthwise: bool, forms: str) -> tuple[int | str, tuple[Comparison, ...]]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, (Comparison("==", (_check_number(value),)),)
    if isinstance(value, str) and len(value) <= 100:
        if depthwise and value.strip().lower() == "depthwise":
            return "depthwise", ()
        tests = [_TEST.fullmatch(part.strip()) for part in value.split(",")]
        if all(tests):
            return value.strip(), tuple(_comparison(test) for test in tests if test)
    raise ValueError(f"found {describe(value)}; allowed is {forms}")


def _comparison(test: re.Match[str]) -> Comparison:
    dims = tuple(_check_number(int(number)) for number in test[2].split("x"))
    sign = {"=": "==", None: "=="}.get(test[1], test[1])
    if len(dims) > 1 and sign not in ("==", "!="):
        raise ValueError(f"found {test[0]!r}; a size such as 1x7 can only be compared with = or !=")
    return Comparison(sign, dims)


def _check_number(number: int) -> int:
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"found a number out of range; allowed are 0 to {MAX_NUMBER}")
    return number
