"""The figures of a report, as SVG: differences with the noise floor and every seed, and learning curves."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from simam_inject.compare.cells import AGAIN, Cell
from simam_inject.compare.statistics import BETTER, WORSE, Difference

_INK, _GREY, _BAND, _BLUE, _ORANGE = "#222222", "#777777", "#e4e4e4", "#0b6bb5", "#c2410c"
"""Blue and orange are distinct for colour-blind readers and in print."""
_COLOURS = {BETTER: _BLUE, WORSE: _ORANGE}
_LINES = (_INK, _GREY, _BLUE, _ORANGE, "#15803d", "#a21caf", "#b45309", "#0e7490")
_DASHES = ("-", "--", "-", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "simam_inject", "font.family": "sans-serif", "font.size": 10}


def draw_differences(rows: Sequence[Difference], floor: Difference | None) -> str:
    """Mean, 95 % interval and every seed of each difference; the band is the interval of `floor`."""
    figure, axes = _new_figure(0.9 + 0.36 * len(rows), "difference to plain")
    axes.axvline(0, color=_GREY, lw=1, zorder=1)
    if floor is not None and not math.isnan(floor.low):
        axes.axvspan(floor.low, floor.high, color=_BAND, zorder=0, lw=0)
    for place, row in enumerate(rows):
        colour = _GREY if row.variant == AGAIN else _COLOURS.get(row.verdict, _INK)
        shifts = place + 0.22 * np.sin(2.4 * np.arange(row.seeds))
        axes.plot(row.pairs, shifts, "o", color=colour, ms=3, alpha=0.45, mew=0)
        axes.plot([row.low, row.high], [place, place], color=colour, lw=2)
        axes.plot([row.mean], [place], "o", color=colour, ms=6)
    names = [" \N{MIDDLE DOT} ".join(filter(None, (row.variant, row.recipe))) for row in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    return _to_svg(figure)


def draw_curves(arms: Mapping[str, Sequence[Cell]]) -> str:
    """A line for the runs of each variant: their mean after each epoch that all of them reported; "" without any."""
    figure, axes = _new_figure(3.2, "epoch")
    axes.set_prop_cycle(color=_LINES, linestyle=_DASHES)
    for name, cells in arms.items():
        curves = [dict(cell.curve) for cell in cells if cell.curve and cell.value is not None]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        if epochs:
            axes.plot(epochs, [mean(curve[epoch] for curve in curves) for epoch in epochs], label=name, lw=1.4)
    if not axes.lines:
        return ""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("metric, mean over seeds")
    for label in axes.legend(frameon=False, fontsize=9).get_texts():
        label.set_parse_math(False)
    return _to_svg(figure)


def _new_figure(height: float, xlabel: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(xlabel)
    return figure, axes


def _to_svg(figure: Any) -> str:
    """Without a date, so that the same study gives the same file."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
