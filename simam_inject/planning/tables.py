"""Tables of any records, as text, as HTML and for a `rich` console, and the table of insertions with notes on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from simam_inject.dataflow.anatomy import Site
from simam_inject.planning.insertions import Insertion

if TYPE_CHECKING:
    import rich.table

_EDITS = {"output": "output", "input": "input", "rewritten": "expression"}
_LONG = 20
"""Characters of a cell from which its column is text, which wraps; but for the first column, which has the names."""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings, and rows of as many cells.

    >>> print(*Table(["site", "ms"], [("layer1.0", "1.5"), ("layer1.1", "12")]).lines(), sep=chr(10))
    site       ms
    layer1.0  1.5
    layer1.1   12
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def kinds(self) -> list[str]:
        """`number`, `name` or `text` for each column: on the right, in one line, or in several lines."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.headings)
        return [_kind_of(column, is_first=number == 0) for number, column in enumerate(columns)]

    def without(self, *headings: str) -> Table:
        """The table without some of its columns."""
        chosen = [number for number, heading in enumerate(self.headings) if heading not in headings]
        head, *rows = ([row[number] for number in chosen] for row in (self.headings, *self.rows))
        return Table(head, rows)

    def lines(self, most: int | None = None) -> list[str]:
        """The table as text; of more than `most` rows the first ones and the last."""
        if not self.rows:
            return []
        table, kinds = [self.headings, *self.rows], self.kinds
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if kind == "number" else cell.ljust(width)
                for cell, width, kind in zip(row, widths, kinds, strict=True)
            ).rstrip()
            for row in table
        ]
        if most is None or len(self.rows) <= most:
            return lines
        return [*lines[: most - 1], f"... {len(self.rows) - most + 1} more ...", lines[-1]]

    def to_html(self, most: int | None = None) -> str:
        """The table as HTML, and at most so many of its rows."""
        rows = [("th", self.headings), *(("td", row) for row in self.rows[:most])]
        if most is not None and len(self.rows) > most:
            rows.append(("td", [f"... and {len(self.rows) - most} more"]))
        texts = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) for tag, cells in rows)
        return f"<table>{''.join(f'<tr>{text}</tr>' for text in texts)}</table>"

    def __rich__(self) -> rich.table.Table:
        from rich import box, table, text

        look: dict[str, Any] = {"pad_edge": False, "show_edge": False, "header_style": "bold"}
        shown = table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **look)
        for heading, kind, *cells in zip(self.headings, self.kinds, *self.rows, strict=True):
            side: Any = "right" if kind == "number" else "left"
            words = [heading, *cells] if kind == "name" else " ".join([heading, *cells]).split()
            least = max(map(len, words)) if kind != "text" else None
            shown.add_column(heading, justify=side, no_wrap=kind == "name", overflow="fold", min_width=least)
        for row in self.rows:
            shown.add_row(*map(text.Text, row))
        return shown


def _kind_of(cells: Sequence[str], *, is_first: bool) -> str:
    if any(cell[:1].isdigit() for cell in cells) and all(not cell or cell[0] in "-0123456789" for cell in cells):
        return "name" if is_first else "number"
    return "text" if not is_first and max(map(len, cells), default=0) >= _LONG else "name"


def sites_table(insertions: Iterable[Insertion], *, complete: bool = False) -> Table:
    """One row for each SimAM; `complete` adds its axes and the name of the module."""
    headings = ["site", "position", "CxHxW", "reduction", "e_lambda", "edit", "axes", "module"]
    rows = [
        [
            one.path or "(model)",
            format_position(one),
            format_map(one),
            str(one.reduction or "-"),
            f"{one.e_lambda:g}",
            _EDITS[one.edit.kind],
            f"{one.axes}, {'measured' if one.axes_measured else 'inferred'}",
            one.module,
        ]
        for one in insertions
    ]
    table = Table(headings, rows)
    return table if complete else table.without("axes", "module")


def notes_on(insertions: Iterable[Insertion], *, each: bool = False) -> Iterator[str]:
    """What is unusual about sites: their axes, several runs, strength, gain, and what planning noted."""
    notes: list[tuple[str, str]] = []
    for one in insertions:
        if one.axes not in ("NCHW", ""):
            notes.append((one.path, f"the axes are {one.axes}"))
        if not one.axes_measured:
            notes.append((one.path, "the axes are inferred, since no run at another input size shows them"))
        if one.runs > 1:
            notes.append((one.path, f"runs {one.runs} times per forward"))
        if one.strength != 1:
            notes.append((one.path, f"strength {one.strength:g}"))
        if one.note:
            notes.append((one.path, one.note))
    return gather("note", notes, each=each)


def gather(word: str, entries: Iterable[tuple[str, str]], *, each: bool = False) -> Iterator[str]:
    """A line for each text, with its paths; or for each entry."""
    paths: dict[str, list[str]] = {}
    for path, text in entries:
        paths.setdefault(text, []).append(path or "(model)")
    for text, found in paths.items():
        if each or len(found) == 1:
            yield from (f"{word}: {path}: {text}" for path in found)
        else:
            yield f"{word}: {len(found)} sites ({found[0]} .. {found[-1]}): {text}"


def format_position(insertion: Insertion) -> str:
    """`after`, or `before` and the reader, as it is called inside the block that computes the value."""
    if insertion.reader is None:
        return insertion.position
    name = insertion.reader.removeprefix(f"{insertion.path.rpartition('.')[0]}.")
    return f"before {(insertion.reader if name.isdigit() else name) or '(model)'}"


def format_map(value: Site | Insertion) -> str:
    """Channels, then spatial sizes, without the batch: `64x56x56`; the shape of what is not a feature map."""
    if value.shape is None:
        return "-"
    if len(value.shape) < 3:
        return str(value.shape)
    _, *sizes = value.shape
    return "x".join(map(str, sizes if value.channel_dim == 1 else [sizes[-1], *sizes[:-1]]))


def format_span(values: Iterable[object]) -> str:
    """Distinct values, and of more than two the first and the last: `8x4x4, 8x2x2`, `64x56x56 .. 512x7x7`."""
    found = [str(value) for value in dict.fromkeys(values) if value is not None]
    return ", ".join(found) if 0 < len(found) < 3 else f"{found[0]} .. {found[-1]}" if found else "-"
