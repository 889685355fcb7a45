"""Rows of an ultralytics model file: `[from, repeats, module, args]`, numbered through backbone and head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simam_inject.errors import RecipeError
from simam_inject.recipe.wording import describe

SECTIONS = ("backbone", "head")
_SIMAM = re.compile(r"(.*\.)?simam(_?(module|attention|block))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of a model file."""

    place: str
    """Path in the file: `head[3]`."""
    number: int
    sources: tuple[int, ...]
    """Numbers of the rows it reads; -1 is the input image."""
    written: Any
    """`from` as it was written: a number or a list; negative numbers count back."""
    repeats: int
    module: str
    args: tuple[Any, ...]

    @property
    def is_simam(self) -> bool:
        """The row is a SimAM and nothing else."""
        return _SIMAM.fullmatch(self.module) is not None

    def __str__(self) -> str:
        return f"row {self.number} ({self.module})"


def read_rows(data: Mapping[str, Any]) -> tuple[Row, ...]:
    """The rows of a model file, their `from` resolved.

    Raises:
        RecipeError: a section is missing, or a row is not one.
    """
    rows: list[Row] = []
    for section in SECTIONS:
        if not isinstance(data.get(section), list):
            raise RecipeError(
                f"{section}: is missing; an ultralytics model file lists its layers under backbone and head"
            )
        for index, entry in enumerate(data[section]):
            rows.append(_read_row(f"{section}[{index}]", len(rows), entry))
    return tuple(rows)


def _read_row(place: str, number: int, entry: object) -> Row:
    if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[2], str):
        raise RecipeError(
            f"{place}: found {describe(entry)}; a row is [from, repeats, module, args], e.g. [-1, 1, SimAM, []]"
        )
    source, repeats, module, args = entry
    if not isinstance(repeats, int) or isinstance(repeats, bool) or not isinstance(args, list):
        raise RecipeError(
            f"{place}: found {describe(repeats)} repeats and {describe(args)} of args; e.g. [-1, 1, SimAM, []]"
        )
    sources = tuple(_resolve(place, number, one) for one in (source if isinstance(source, list) else [source]))
    return Row(place, number, sources, source, repeats, module, tuple(args))


def _resolve(place: str, number: int, source: object) -> int:
    """Number of the row that `from` means; negative ones count back from here."""
    if isinstance(source, int) and not isinstance(source, bool):
        resolved = source if source >= 0 else number + source
        if -1 <= resolved < number:
            return resolved
    raise RecipeError(
        f"{place}: reads row {describe(source)}; row {number} can read rows 0 to {number - 1}, or -1 for the one before"
    )


def write_rows(data: Mapping[str, Any], rows: Sequence[Row], stock_numbers: Mapping[int, int]) -> dict[str, Any]:
    """The model file without the rows that have no stock number; everything else as it was."""
    stock = {**data, **{section: [] for section in SECTIONS}}
    for row in rows:
        if row.number not in stock_numbers:
            continue
        written = row.written if isinstance(row.written, list) else [row.written]
        sources = [
            _stock_source(source, rows, stock_numbers, stock_numbers[row.number] if was < 0 else None)
            for source, was in zip(row.sources, written, strict=True)
        ]
        source = sources if isinstance(row.written, list) else sources[0]
        stock[row.place.partition("[")[0]].append([source, row.repeats, row.module, list(row.args)])
    return stock


def _stock_source(source: int, rows: Sequence[Row], stock_numbers: Mapping[int, int], here: int | None) -> int:
    """The stock number of what a row reads; -1 if it was counted back and is the row before `here`."""
    while source >= 0 and source not in stock_numbers:
        source = rows[source].sources[0]
    number = stock_numbers[source] if source >= 0 else -1
    return -1 if here is not None and number == here - 1 else number
