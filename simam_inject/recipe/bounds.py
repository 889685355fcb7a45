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
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
TEST_PATTERN = r"(>=|<=|!=|==|>|<|=)?\s*(\d{1,10}(?:x\d{1,10}){0,2})"

Fact = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison: an operator and one number for every dimension, or one number for each."""

    sign: str
    dims: tuple[int, ...]

    def holds(self, fact: Fact) -> bool:
        """The fact satisfies it in every dimension; `!=` where it is not equal in every dimension."""
        if self.sign == "!=":
            return not Comparison("==", self.dims).holds(fact)
        facts = fact if isinstance(fact, tuple) else (fact,)
        dims = self.dims * len(facts) if len(self.dims) == 1 else self.dims
        return len(dims) == len(facts) and all(map(_OPERATORS[self.sign], facts, dims))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be. Make it with `parse_bounds`."""

    source: int | str | tuple[int | str, ...]
    """As it was written, a list as a tuple."""
    choices: tuple[tuple[Comparison, ...], ...]
    """Any of these; of each, all comparisons. One without comparisons is `depthwise`."""

    def admits(self, fact: Fact, *, depthwise: bool = False) -> bool:
        """The fact satisfies one of the choices."""
        return any(all(test.holds(fact) for test in choice) if choice else depthwise for choice in self.choices)

    def __str__(self) -> str:
        return " or ".join(map(str, self.source)) if isinstance(self.source, tuple) else str(self.source)


def parse_bounds(value: object, *, depthwise: bool = False) -> Bounds:
    """Read a condition as it stands in a recipe; `depthwise` says whether that word is allowed.

    Raises:
        ValueError: not one of the forms, or a number too large.
    """
    if not isinstance(value, list | tuple):
        return Bounds(*_parse_entry(value, depthwise=depthwise))
    if not 1 <= len(value) <= 64:
        raise ValueError(f"found a list of {len(value)} entries; expected 1 to 64")
    entries = [_parse_entry(entry, depthwise=depthwise) for entry in value]
    return Bounds(tuple(source for source, _ in entries), tuple(choice for _, (choice,) in entries))


def _parse_entry(value: object, *, depthwise: bool) -> tuple[int | str, tuple[tuple[Comparison, ...]]]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, ((Comparison("==", (_check_number(value),)),),)
    if isinstance(value, str) and len(value) <= 100:
        if depthwise and value.strip().lower() == "depthwise":
            return "depthwise", ((),)
        tests = [re.fullmatch(TEST_PATTERN, part.strip()) for part in value.split(",")]
        if all(tests):
            return value.strip(), (tuple(_comparison(test) for test in tests if test),)
    raise ValueError(
        f"found {describe(value)}; expected a whole number, a comparison such as '>=64' or '>=8, <=32', a size such "
        f"as '1x7', {'depthwise, ' * depthwise}or a list of these"
    )


def _comparison(test: re.Match[str]) -> Comparison:
    dims = tuple(_check_number(int(number)) for number in test[2].split("x"))
    sign = "==" if test[1] in ("=", None) else test[1]
    if len(dims) > 1 and sign not in ("==", "!="):
        raise ValueError(f"found {test[0]!r}; a size such as 1x7 can only be compared with = or !=")
    return Comparison(sign, dims)


def _check_number(number: int) -> int:
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"found a number out of range; expected 0 to {MAX_NUMBER}")
    return number
