"""A benchmark as a table and as a bar chart."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from simam_inject.reporting.formats import UNKNOWN, format_bytes

if TYPE_CHECKING:
    from simam_inject.bench.measuring import Quartiles
    from simam_inject.bench.run import Row


def render_bench(
    rows: tuple[Row, ...], *, heading: str, notes: tuple[str, ...], not_run: tuple[tuple[str, str], ...] = ()
) -> Group:
    """The table: one line per variant and mode. A ratio too spread out to be quoted says so instead of a number."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("mode", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    kept = any(row.kept_bytes is not None for row in rows)
    peak = any(row.peak_bytes is not None for row in rows)
    for column in ("ms", "x plain (quartiles)", "images/s", *["kept"] * kept, *["peak"] * peak):
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            row.mode,
            row.variant,
            f"{row.seconds.median * 1e3:.2f}",
            _ratio(row.ratio),
            f"{row.images_per_second:.1f}",
            *[UNKNOWN if row.kept_bytes is None else format_bytes(row.kept_bytes)] * kept,
            *[UNKNOWN if row.peak_bytes is None else format_bytes(row.peak_bytes)] * peak,
        )
    notes = (*notes, *["kept: bytes that the forward keeps for the backward pass"] * kept)
    refusals = [Text(f"{mode} not run: {reason}", style="yellow") for mode, reason in not_run]
    return Group(Text(heading), table, *(Text(note) for note in notes), *refusals)


def _ratio(ratio: Quartiles) -> str:
    if ratio.low == ratio.high:
        return f"{ratio.median:.3f}"
    return "too noisy" if ratio.is_noisy else f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def bench_chart(rows: tuple[Row, ...], *, heading: str) -> str:
    """An SVG bar chart of the ratios to the plain model, with their quartiles as whiskers."""
    height, left, width = 26, 210, 420
    largest = max((row.ratio.high for row in rows), default=1.0)
    scale = width / max(largest, 1e-9)
    parts = []
    for index, row in enumerate(rows):
        top = 40 + index * height
        middle = top + height * 0.36
        bar = row.ratio.median * scale
        colour = {"plain": "#999999", "SimAM": "#2a7f62"}.get(row.variant, "#7a6fb0")
        label = escape(f"{row.mode}, {row.variant}")
        whisker = f'<line x1="{left + row.ratio.low * scale:.1f}" x2="{left + row.ratio.high * scale:.1f}"'
        parts += [
            f'<text x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{label}</text>',
            f'<rect x="{left}" y="{top}" width="{bar:.1f}" height="{height * 0.72:.1f}" fill="{colour}"/>',
            f'{whisker} y1="{middle:.1f}" y2="{middle:.1f}" stroke="black"/>',
            f'<text x="{left + row.ratio.high * scale + 6:.1f}" y="{middle + 4:.1f}">{row.ratio.median:.3f}</text>',
        ]
    total = 60 + len(rows) * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{total}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<text x="10" y="22" font-weight="bold">{escape(heading)}</text>\n' + "\n".join(parts) + "\n</svg>\n"
    )
