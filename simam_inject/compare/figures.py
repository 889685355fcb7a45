"""The figures of a report, as SVG: differences with the noise floor and every seed, and learning curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simam_inject.compare.records import AGAIN, PLAIN, Cell, Results
from simam_inject.compare.statistics import BETTER, WORSE, Difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _GREY, _BAND = "#222222", "#777777", "#e4e4e4"
_COLOURS = {BETTER: "#0b6bb5", WORSE: "#c2410c"}
"""Two that stay apart for the colour-blind and in print; everything unresolved is ink."""
_WIDTH = 4.6
_LINES = ("#222222", "#777777", "#0b6bb5", "#c2410c", "#15803d", "#a21caf", "#b45309", "#0e7490")
_DASHES = ("-", "--", "-", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "simam_inject", "font.family": "sans-serif", "font.size": 10}


def rows_of(comparison: Results) -> list[Difference]:
    """The A/A arm first, then every variant, recipe by recipe."""
    floor = [comparison.noise_floor] if comparison.noise_floor is not None else []
    return [*floor, *comparison.differences]


def label(difference: Difference) -> str:
    """Variant and recipe on one line."""
    return f"{difference.variant} · {difference.recipe}" if difference.recipe else difference.variant


def draw_differences(comparison: Results) -> str:
    """Mean, 95 % interval and every seed of each difference to plain; the band is plain against itself."""
    rows, floor = rows_of(comparison), comparison.noise_floor
    plain = {cell.seed: cell.value for cell in comparison.of(PLAIN)}
    figure, axes = _figure(0.9 + 0.36 * len(rows))
    axes.axvline(0, color=_GREY, lw=1, zorder=1)
    if floor is not None and not math.isnan(floor.low):
        axes.axvspan(floor.low, floor.high, color=_BAND, zorder=0, lw=0)
    for place, row in enumerate(rows):
        colour = _GREY if row.variant == AGAIN else _COLOURS.get(row.verdict, _INK)
        runs = ((cell.value, plain.get(cell.seed)) for cell in comparison.of(row.variant, row.recipe))
        pairs = [value - base for value, base in runs if value is not None and base is not None]
        shifts = place + 0.22 * np.sin(2.4 * np.arange(len(pairs)))
        axes.plot(pairs, shifts, "o", color=colour, ms=3, alpha=0.45, mew=0)
        axes.plot([row.low, row.high], [place, place], color=colour, lw=2)
        axes.plot([row.mean], [place], "o", color=colour, ms=6)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("difference to plain")
    return _svg(figure)


def draw_curves(comparison: Results) -> list[tuple[str, str]]:
    """Mean over the seeds after each epoch, one figure a recipe; empty where no curve was reported."""
    figures = []
    recipes = list(dict.fromkeys(row.recipe for row in comparison.differences)) or [""]
    for recipe in recipes:
        variants = [(PLAIN, ""), (AGAIN, "")]
        variants += [(row.variant, recipe) for row in comparison.differences if row.recipe == recipe]
        curves = {name: curve for name, at in variants if (curve := _mean_curve(comparison.of(name, at)))}
        if not curves:
            continue
        figure, axes = _figure(3.2)
        for index, (name, curve) in enumerate(curves.items()):
            style: dict[str, Any] = {"color": _LINES[index % 8], "ls": _DASHES[index % 8], "lw": 1.4}
            axes.plot(*zip(*curve, strict=True), label=name, **style)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("metric, mean over seeds")
        axes.legend(frameon=False, fontsize=9)
        figures.append((recipe, _svg(figure)))
    return figures


def _mean_curve(cells: Sequence[Cell]) -> list[tuple[int, float]]:
    """Of the epochs that every finished run reported."""
    curves = [dict(cell.curve) for cell in cells if cell.curve and cell.value is not None]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return [(epoch, float(np.mean([curve[epoch] for curve in curves]))) for epoch in shared]


def _figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure without a date, so that the same study gives the same file."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
