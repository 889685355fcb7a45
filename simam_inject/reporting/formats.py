"""How facts are written, the same in every report, and the one form of a table."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box, table
from rich.text import Text

from simam_inject.dataflow.records import Site
from simam_inject.planning.records import Insertion

MODEL = "(the model)"
"""How the empty path is written."""
_SHORT = 14, 34
"""Cells up to this length are not wrapped in a terminal of 80 columns; the second number is for the first column."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts, which `rich` prints and the template of the page writes as HTML.

    Example:
        >>> from rich import print
        >>> print(Table(("site", "reduction"), [("layer1.0", "4")]))
        site      reduction
        ───────────────────
        layer1.0          4
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: Container[int] = ()
    """Indices of the rows in bold."""

    @property
    def kinds(self) -> list[str]:
        """Of each column: `number` is aligned to the right, `name` is not wrapped, and `text` is wrapped."""
        return [self._kind(column, [row[column] for row in self.rows]) for column in range(len(self.headings))]

    def _kind(self, column: int, cells: list[str]) -> str:
        if column > 0 and all(cell[:1].isdigit() or cell == "-" for cell in cells):
            return "number"
        return "name" if all(len(cell) <= _SHORT[column == 0] for cell in cells) else "text"

    def without(self, *headings: str) -> Table:
        """The table without some of its columns."""
        left = [column for column, heading in enumerate(self.headings) if heading not in headings]
        return Table(
            [self.headings[column] for column in left], [[row[c] for c in left] for row in self.rows], self.bold
        )

    def __rich__(self) -> table.Table:
        made = table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for heading, kind in zip(self.headings, self.kinds, strict=True):
            right = "right" if kind == "number" else "left"
            made.add_column(heading, justify=right, no_wrap=kind == "name", overflow="fold")  # type: ignore[arg-type]
        for number, row in enumerate(self.rows):
            made.add_row(*map(Text, row), style="bold" if number in self.bold else "")
        return made


def format_map(found: Site | Insertion) -> str:
    """Channels x spatial sizes of a feature map: `256x56x56`; the whole shape in brackets if it is not one."""
    shape = found.shape
    if shape is None or len(shape) < 3:
        return "-" if shape is None else f"({', '.join(map(str, shape))})"
    spatial = shape[2:] if found.channel_dim == 1 else shape[1:-1]
    return "x".join(map(str, (shape[found.channel_dim], *spatial)))


def format_count(count: int, noun: str) -> str:
    """`1 site`, `16 sites`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def format_span(values: Iterable[Any], gap: str = " .. ") -> str:
    """Distinct values in order: one, two, or the first and the last of more; `-` for none."""
    distinct = [str(value) for value in dict.fromkeys(values) if value is not None]
    return gap.join([distinct[0], distinct[-1]]) if len(distinct) > 2 else ", ".join(distinct) or "-"
