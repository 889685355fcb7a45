"""How many of a rule's hits to take: `all`, `first`, `last`, `{first: 2}`, `{every: 2}`, each `per` group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from simam_inject.recipe.targets import KeyedError
from simam_inject.recipe.wording import describe, did_you_mean, join_names

MODES = ("all", "first", "last", "every")
GROUPS = ("model", "stage", "reduction", "parent")
MAX_COUNT = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pick:
    """A choice among hits. Make it with `parse_pick`."""

    mode: str = "all"
    count: int = 1
    per: str = "model"

    @property
    def takes_all(self) -> bool:
        """Every hit is taken."""
        return self.mode == "all" or (self.mode, self.count) == ("every", 1)

    def choose(self, hits: Sequence[T]) -> Sequence[T]:
        """Those of one group's hits that are taken."""
        if self.mode == "first":
            return hits[: self.count]
        if self.mode == "last":
            return hits[-self.count :]
        return hits[:: self.count]

    def __str__(self) -> str:
        per = "" if self.per == "model" else f", per: {self.per}"
        return "all" if self.mode == "all" else f"{{{self.mode}: {self.count}{per}}}"


def parse_pick(value: object) -> Pick:
    """Check what stands at `pick`.

    Raises:
        ValueError: not one of the forms.
    """
    if isinstance(value, Pick):
        return value
    if isinstance(value, str):
        if value in ("all", "first", "last"):
            return Pick(value)
        raise ValueError(f"found {describe(value)}; allowed is {_FORMS}{did_you_mean(value, MODES)}")
    if not isinstance(value, Mapping):
        raise ValueError(f"found {describe(value)}; allowed is {_FORMS}")
    for key in value:
        if key not in (*MODES[1:], "per"):
            near = did_you_mean(key, (*MODES[1:], "per")) if isinstance(key, str) else ""
            raise KeyedError(
                key if isinstance(key, str) else describe(key),
                f"unknown key; allowed are first, last, every, per{near}",
            )
    modes = [mode for mode in MODES if mode in value]
    if len(modes) != 1:
        raise ValueError(
            f"found {' and '.join(modes) or 'none'} of first, last, every; exactly one of them says how many"
        )
    return Pick(modes[0], _parse_count(modes[0], value[modes[0]]), _parse_group(value.get("per", "model")))


_FORMS = "all, first, last, or a mapping such as {last: 1, per: reduction}"


def _parse_count(mode: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise KeyedError(mode, f"found {describe(value)}; allowed are whole numbers from 1 to {MAX_COUNT}")
    return value


def _parse_group(value: object) -> str:
    if not isinstance(value, str) or value not in GROUPS:
        near = did_you_mean(value, GROUPS) if isinstance(value, str) else ""
        raise KeyedError("per", f"found {describe(value)}; allowed is {join_names(GROUPS)}{near}")
    return value
