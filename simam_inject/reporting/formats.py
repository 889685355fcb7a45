"""How single facts are written, the same in every report, and the one form of a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Column, Table

if TYPE_CHECKING:
    from jinja2 import Template

UNKNOWN = "-"
MODEL = "(the model)"
"""What stands for the empty path."""


def new_table(*columns: Column | str) -> Table:
    """An empty table; in a column that is given as a string, what is too long for the terminal goes on below."""
    made = [Column(column, overflow="fold") if isinstance(column, str) else column for column in columns]
    return Table(*made, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def read_template(name: str) -> Template:
    """A Jinja2 template of this folder; whatever is put into it is escaped."""
    import jinja2

    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(text)


def as_json(value: Any) -> Any:
    """Records and what they hold as JSON reads it back: tuples as lists, paths as strings."""
    return json.loads(json.dumps(value, default=lambda one: asdict(one) if is_dataclass(one) else str(one)))  # type: ignore[arg-type]


def format_map(shape: Sequence[int] | None, channel_dim: int = 1) -> str:
    """Channels x spatial sizes of a feature map: `256x56x56`; the whole shape in brackets if it is not one."""
    if shape is None:
        return UNKNOWN
    if len(shape) < 3:
        return f"({', '.join(map(str, shape))})"
    channels = shape[channel_dim]
    spatial = shape[2:] if channel_dim == 1 else shape[1:-1]
    return "x".join(map(str, (channels, *spatial)))


def format_bytes(count: float) -> str:
    """`43.7 MB`: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """`1 site`, `16 sites`, `2 near misses`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def format_span(values: Iterable[str]) -> str:
    """Distinct values in order: one, two, or the first and the last of more."""
    distinct = list(dict.fromkeys(values))
    return " .. ".join([distinct[0], distinct[-1]]) if len(distinct) > 2 else ", ".join(distinct)


def format_reductions(reductions: Iterable[int | None]) -> str:
    """`4`, `4, 16`, or `4..32` for all powers of two between; `-` where none is known."""
    found = sorted({reduction for reduction in reductions if reduction is not None})
    if not found:
        return UNKNOWN
    doubled = all(larger == 2 * smaller for smaller, larger in pairwise(found))
    return f"{found[0]}..{found[-1]}" if len(found) > 2 and doubled else ", ".join(map(str, found))
