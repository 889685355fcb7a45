"""A benchmark as a table and as a bar chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Column
from rich.text import Text

from simam_inject.reporting.formats import UNKNOWN, format_bytes, format_count, new_table, read_template

if TYPE_CHECKING:
    from simam_inject.bench.measuring import Quartiles
    from simam_inject.bench.run import Bench

_COLOURS = {"plain": "#999999", "SimAM": "#2a7f62"}
_WIDTH = 420.0
"""Pixels of the longest bar."""


def render_bench(measured: Bench, heading: str) -> Group:
    """The table: one line per variant and mode. A ratio too spread out to be quoted says so instead of a number."""
    has_kept = any(row.kept_bytes is not None for row in measured.rows)
    has_peak = any(row.peak_bytes is not None for row in measured.rows)
    names = ["ms", "x plain (quartiles)", "images/s", *["kept"] * has_kept, *["peak"] * has_peak]
    numbers = [Column(name, justify="right", overflow="fold") for name in names]
    table = new_table(Column("mode", no_wrap=True), Column("variant", no_wrap=True), *numbers)
    for row in measured.rows:
        table.add_row(
            row.mode,
            row.variant,
            f"{row.seconds.median * 1e3:.2f}",
            _ratio(row.ratio),
            f"{row.images_per_second:.1f}",
            *[_bytes(row.kept_bytes)] * has_kept,
            *[_bytes(row.peak_bytes)] * has_peak,
        )
    machine = ", ".join(f"{key} {value}" for key, value in measured.machine.items())
    sites, least = format_count(measured.sites, "site"), format_bytes(measured.floor_bytes)
    notes = [
        f"{sites}; per batch, the attention reads and writes at least {least}",
        f"measured on: {machine}; ratios are taken round by round, all variants interleaved in one process",
        *["kept: bytes that the forward keeps for the backward pass"] * has_kept,
    ]
    refusals = [Text(f"{mode} not run: {reason}", style="yellow") for mode, reason in measured.not_run]
    return Group(Text(_title(measured, heading)), table, *map(Text, notes), *refusals)


def _title(measured: Bench, heading: str) -> str:
    conditions = measured.conditions
    words = [f"batch {conditions.batch}", conditions.dtype, "channels last" if conditions.channels_last else "NCHW"]
    words += ["compiled" if conditions.compile else "eager", f"{conditions.rounds} rounds"]
    return f"{heading}: {', '.join(words)}"


def _bytes(count: int | None) -> str:
    return UNKNOWN if count is None else format_bytes(count)


def _ratio(ratio: Quartiles) -> str:
    if ratio.low == ratio.high:
        return f"{ratio.median:.3f}"
    return "too noisy" if ratio.is_noisy else f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def bench_chart(measured: Bench, heading: str) -> str:
    """An SVG bar chart of the ratios to the plain model, with their quartiles as whiskers."""
    scale = _WIDTH / max((row.ratio.high for row in measured.rows), default=1.0)
    bars = [
        {
            "label": f"{row.mode}, {row.variant}",
            "colour": _COLOURS.get(row.variant, "#7a6fb0"),
            "length": round(row.ratio.median * scale, 1),
            "low": round(row.ratio.low * scale, 1),
            "high": round(row.ratio.high * scale, 1),
            "ratio": f"{row.ratio.median:.3f}",
        }
        for row in measured.rows
    ]
    return read_template("bench.svg.j2").render(heading=_title(measured, heading), bars=bars)
