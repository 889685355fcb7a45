"""The result of a comparison, and its report: Markdown, and one HTML file that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import jinja2

from simam_inject.compare import figures, statistics
from simam_inject.compare.records import AGAIN, PLAIN, Cell, Costs
from simam_inject.compare.statistics import BETTER, LEVEL, NOISE_ONLY, NOT_RESOLVED, WORSE, Difference

WRONG_SIGN = "the values of plain fall during training; higher must be better, so return the negative of a loss"


@dataclass(frozen=True)
class Comparison:
    """All runs of a study, and the differences between them.

    Example:
        >>> comparison = compare(make_model, ["paper"], train, against=["se"])  # doctest: +SKIP
        >>> for difference in comparison.differences:  # doctest: +SKIP
        ...     print(difference.variant, difference.recipe, difference.mean, difference.verdict)
    """

    cells: tuple[Cell, ...]
    settings: dict[str, Any]
    made_with: dict[str, str] = field(default_factory=dict)
    """The command and the versions."""
    total: int = 0
    """Runs of the whole study; more than `cells` while it is unfinished."""
    looks: int = 1
    resolve: float | None = None

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Each variant and recipe against plain."""
        arms = dict.fromkeys((cell.variant, cell.recipe) for cell in self.cells if cell.recipe)
        values = {arm: self._values(*arm) for arm in arms}
        return statistics.compare_to(self._values(PLAIN), values, resolve=self.resolve, looks=self.looks)

    @cached_property
    def noise_floor(self) -> Difference | None:
        """*Plain again*: the same weights with another data order. Its true difference is zero."""
        if not self.of(AGAIN):
            return None
        (found,) = statistics.compare_to(self._values(PLAIN), {(AGAIN, ""): self._values(AGAIN)})
        return replace(found, verdict=NOISE_ONLY)

    def _values(self, variant: str, recipe: str = "") -> dict[int, float | None]:
        return {cell.seed: cell.value for cell in self.of(variant, recipe)}

    def of(self, variant: str, recipe: str = "") -> tuple[Cell, ...]:
        """Runs of one variant, by seed."""
        found = (cell for cell in self.cells if (cell.variant, cell.recipe) == (variant, recipe))
        return tuple(sorted(found, key=lambda cell: cell.seed))

    def costs(self, variant: str, recipe: str = "") -> Costs | None:
        """What one variant costs: medians over its runs."""
        found = [cell.costs for cell in self.of(variant, recipe) if cell.costs is not None]
        if not found:
            return None
        kept = [cost.kept_bytes for cost in found if cost.kept_bytes is not None]
        seconds = [cost.seconds for cost in found if cost.seconds is not None]
        return Costs(found[0].parameters, int(median(kept)) if kept else None, median(seconds) if seconds else None)

    def test_noise(self, variant: str, recipe: str = "") -> float | None:
        """Half of the 95 % interval of a difference over other test sets of this size; None without `report.samples`.

        More seeds do not reduce it.
        """
        plain, other = (
            {cell.seed: cell for cell in self.of(*key) if cell.correct and cell.value is not None}
            for key in ((PLAIN, ""), (variant, recipe))
        )
        seeds = sorted(plain.keys() & other.keys())
        if not seeds:
            return None
        unit = (plain[seeds[0]].value or 0.0) / max(float(plain[seeds[0]].right().mean()), 1e-9)
        return statistics.sample_noise([plain[s].right() for s in seeds], [other[s].right() for s in seeds], unit)

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits the validity of the result."""
        return tuple(_notes(self))

    def to_markdown(self) -> str:
        """The report as Markdown: tables and notes, without figures."""
        return _render("report.md.j2", describe(self))

    __str__ = to_markdown

    def to_html(self) -> str:
        """The report as one HTML page with its figures inside."""
        rows = {_name(row, " · "): row for row in _rows(self)}
        drawn = {"differences": figures.draw_differences(rows, self.noise_floor), "curves": list(_draw_curves(self))}
        return _render("report.html.j2", describe(self) | drawn)

    def save(self, html: str | Path | None = None, markdown: str | Path | None = None) -> None:
        """Write the report to files."""
        if html is not None:
            Path(html).write_text(self.to_html(), encoding="utf-8")
        if markdown is not None:
            Path(markdown).write_text(self.to_markdown(), encoding="utf-8")


def _notes(comparison: Comparison) -> Iterator[str]:
    plain, floor = comparison.of(PLAIN), comparison.noise_floor
    if len(comparison.cells) < comparison.total:
        yield (
            f"unfinished: {len(comparison.cells)} of {comparison.total} runs; the verdicts are valid only if the "
            "decision to stop did not depend on them"
        )
    if comparison.looks > 1:
        yield f"seeds were added after a first result, so every p value is multiplied by {comparison.looks}"
    if len(plain) > 1 and 2 * sum(cell.falls for cell in plain) > len(plain):
        yield WRONG_SIGN
    if len(plain) > 1 and len({cell.value for cell in plain} - {None}) == 1:
        yield "plain gave the same value at every seed: the runs ignore the seed, or the metric is saturated"
    starts = {(cell.seed, cell.weights) for cell in comparison.cells if cell.weights}
    if len(starts) > len({seed for seed, _ in starts}):
        yield (
            "the variants of one seed did not start from the same weights: make_model ignores the seed, or the "
            "workers differ. The differences are noisier than necessary"
        )
    if floor is not None and floor.p < LEVEL:
        yield (
            f"plain again differs from plain by {floor.mean:+.2f} (p {floor.p:.3f}), though nothing but the data order "
            "differs: this happens by chance in one study out of twenty. Interpret small differences with care"
        )


def _render(template: str, data: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=".html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(data)


def describe(comparison: Comparison) -> dict[str, Any]:
    """What both forms of the report contain, as text."""
    model, rows = comparison.settings.get("model"), _rows(comparison)
    arms = [(PLAIN, ""), *((row.variant, row.recipe) for row in rows)]
    hidden = ("variants", "recipes")
    settings = [(key, value) for key, value in comparison.settings.items() if key not in hidden and value is not None]
    failed = (cell for cell in comparison.cells if cell.value is None)
    return {
        "title": f"Attention compared in {model}" if model else "Attention compared",
        "answer": answer(comparison),
        "notes": comparison.notes,
        "rows": [_row(comparison, row) for row in rows],
        "costs": [_cost_row(comparison, *arm) for arm in arms],
        "failures": [(f"{c.variant} {c.recipe} seed {c.seed}".replace("  ", " "), c.error) for c in failed],
        "made_with": [*comparison.made_with.items(), *settings],
    }


def _rows(comparison: Comparison) -> list[Difference]:
    floor = [comparison.noise_floor] if comparison.noise_floor is not None else []
    return [*floor, *comparison.differences]


def _name(row: Difference, joint: str) -> str:
    return f"{row.variant}{joint}{row.recipe}" if row.recipe else row.variant


def answer(comparison: Comparison) -> str:
    """The result in a sentence or two."""
    by_verdict: dict[str, list[Difference]] = {}
    for row in comparison.differences:
        by_verdict.setdefault(row.verdict, []).append(row)
    parts = []
    for verdict in (BETTER, WORSE):
        if found := by_verdict.get(verdict):
            names = ", ".join(f"{_name(row, ' at ')} ({_signed(row.mean)})" for row in found)
            parts.append(f"{verdict.capitalize()} than plain: {names}.")
    if found := by_verdict.get(NOT_RESOLVED):
        which = "None of the others" if parts else "No variant"
        sizes = sorted(row.detectable for row in found)
        low, high = f"{sizes[0]:.2g}", f"{sizes[-1]:.2g}"
        missed = f"{low} to {high} (depending on the variant)" if low != high else low
        parts.append(
            f"{which} differs significantly from plain; with this many seeds, true differences below {missed} may "
            "go undetected."
        )
    if found := by_verdict.get(NOISE_ONLY):
        parts.append(
            f"{len(found)} of {len(comparison.differences)} comparisons have fewer than 5 usable seeds, or differences "
            "that are the same at every seed: their numbers are an estimate of the noise only."
        )
    return " ".join(parts) or "No results yet."


def _row(comparison: Comparison, row: Difference) -> tuple[str, ...]:
    p = "" if math.isnan(row.p) or row.variant == AGAIN else f"{row.p:.3f}" if row.p >= 0.001 else "< 0.001"
    noise = comparison.test_noise(row.variant, row.recipe)
    return (
        *(row.variant, row.recipe, f"{row.seeds}", _signed(row.mean)),
        "" if math.isnan(row.low) else f"{_signed(row.low)} to {_signed(row.high)}",
        *(p, row.verdict, _power(row, comparison.resolve)),
        "" if noise is None else f"±{noise:.2f}",
    )


def _power(row: Difference, resolve: float | None) -> str:
    """How many seeds find the difference of interest, or which difference so many seeds find."""
    if row.verdict in (BETTER, WORSE) or row.variant == AGAIN or math.isnan(row.sd):
        return ""
    if resolve is not None:
        return f"{'over 100,000' if row.needed is None else row.needed} seeds detect {resolve:g}"
    return f"{row.seeds} seeds detect {row.detectable:.2g}"


def _cost_row(comparison: Comparison, variant: str, recipe: str) -> tuple[str, ...]:
    cells, costs = comparison.of(variant, recipe), comparison.costs(variant, recipe) or Costs(0)
    plain = comparison.costs(PLAIN) or costs
    values = [cell.value for cell in cells if cell.value is not None]
    failed, added = len(cells) - len(values), costs.parameters - plain.parameters
    spread = f" ({stdev(values):.2f})" if len(values) > 1 else ""
    return (
        *(variant, recipe),
        f"{mean(values):.2f}{spread}" if values else "",
        f"{costs.parameters:,}" + (f" ({added:+,})" if added else "") if costs.parameters else "",
        _with_factor(costs.kept_bytes, plain.kept_bytes, 2**-20, "MiB"),
        _with_factor(costs.seconds, plain.seconds, 1e3, "ms"),
        f"{failed} of {len(cells)}" if failed else "",
    )


def _with_factor(value: float | None, plain: float | None, scale: float, unit: str) -> str:
    """A cost, and how many times that of plain it is."""
    if value is None:
        return ""
    return f"{scale * value:.2f} {unit}" + (f" (\N{MULTIPLICATION SIGN}{value / plain:.2f})" if plain else "")


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _draw_curves(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """For each recipe, a figure of the mean over the seeds after each epoch; none if no curve was reported."""
    for recipe in dict.fromkeys(row.recipe for row in comparison.differences):
        variants = [row.variant for row in comparison.differences if row.recipe == recipe]
        arms = [(PLAIN, ""), (AGAIN, ""), *((variant, recipe) for variant in variants)]
        curves = {name: curve for name, at in arms if (curve := _mean_curve(comparison.of(name, at)))}
        if curves:
            yield recipe, figures.draw_curves(curves)


def _mean_curve(cells: tuple[Cell, ...]) -> list[tuple[int, float]]:
    """Over the epochs that every finished run reported."""
    curves = [dict(cell.curve) for cell in cells if cell.curve and cell.value is not None]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(epoch, mean(curve[epoch] for curve in curves)) for epoch in shared]
