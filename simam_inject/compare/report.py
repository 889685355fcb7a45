"""The report of a comparison: Markdown, and one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from simam_inject.compare import figures
from simam_inject.compare.records import AGAIN, PLAIN, Costs, Results
from simam_inject.compare.statistics import BETTER, NOISE_ONLY, NOT_RESOLVED, WORSE, Difference
from simam_inject.errors import CompareError

_HEAD = (
    *("variant", "recipe", "seeds", "difference", "95 % interval", "p (Holm)"),
    *("verdict", "80 % power", "test set"),
)
_COST_HEAD = ("variant", "recipe", "mean (sd)", "parameters", "saved for backward", "forward time", "failed")
METHOD = (
    "Difference: mean over the seeds of the variant's result minus the result of plain for the same seed; both start "
    "from the same weights and see the data in the same order for the same number of epochs. The interval is a t "
    "interval for that difference alone. p is from a paired t test with Holm's correction over all comparisons in this "
    "table; the verdict follows p. Plain again is plain with another data order: its true difference is zero, so it "
    "shows the noise. 80 % power: how many seeds detect which difference. Test set: half of the 95 % interval of the "
    "difference over test sets of this size, with independent samples."
)


@dataclass(frozen=True, slots=True)
class Comparison(Results):
    """All cells of a study, what they say, and the report about them.

    Example:
        >>> comparison = compare(make_model, ["paper"], train, against=["se"])  # doctest: +SKIP
        >>> for difference in comparison.differences:  # doctest: +SKIP
        ...     print(difference.variant, difference.recipe, difference.mean, difference.verdict)
    """

    def to_markdown(self) -> str:
        """The report as Markdown: tables and notes, without figures."""
        data = describe(self)
        lines = [f"# {data['title']}", "", data["answer"], ""]
        lines += [f"* {note}" for note in data["notes"]] + [""] * bool(data["notes"])
        lines += [_table(_HEAD, data["rows"]), "", _table(_COST_HEAD, data["costs"]), ""]
        if data["failures"]:
            lines += ["Failed runs:", ""]
            lines += [f"* {where}: {' '.join(error.split())}" for where, error in data["failures"]] + [""]
        lines += [METHOD, ""]
        lines += [f"    {key}: {value}" for key, value in data["made_with"]]
        return "\n".join(lines) + "\n"

    __str__ = to_markdown

    def to_html(self) -> str:
        """The report as one HTML page with its figures inside.

        Raises:
            CompareError: jinja2 or matplotlib is not installed.
        """
        try:
            import jinja2
            import matplotlib as mpl  # noqa: F401
        except ImportError as error:
            raise CompareError(
                f"{error.name} is not installed, which the report needs: pip install 'simam_inject[compare]'"
            ) from None
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
        return template.render(
            **describe(self),
            head=_HEAD,
            cost_head=_COST_HEAD,
            method=METHOD,
            differences=figures.draw_differences(self),
            curves=figures.draw_curves(self),
        )

    def save(self, html: str | Path | None = None, markdown: str | Path | None = None) -> None:
        """Write the report to files."""
        if html is not None:
            Path(html).write_text(self.to_html(), encoding="utf-8")
        if markdown is not None:
            Path(markdown).write_text(self.to_markdown(), encoding="utf-8")


def describe(comparison: Results) -> dict[str, Any]:
    """Everything that both forms say, as text."""
    model = comparison.settings.get("model")
    rows = figures.rows_of(comparison)
    arms = [(PLAIN, ""), *((row.variant, row.recipe) for row in rows)]
    hidden = ("variants", "recipes")
    settings = [(key, value) for key, value in comparison.settings.items() if key not in hidden and value is not None]
    failed = (cell for cell in comparison.cells if cell.value is None)
    return {
        "title": f"Attention compared in {model}" if model else "Attention compared",
        "answer": answer(comparison),
        "notes": comparison.notes,
        "rows": [_row(row, comparison.resolve) for row in rows],
        "costs": [_cost_row(comparison, *arm) for arm in arms],
        "failures": [(f"{c.variant} {c.recipe} seed {c.seed}".replace("  ", " "), c.error) for c in failed],
        "made_with": [*comparison.made_with.items(), *((key, f"{value}") for key, value in settings)],
    }


def answer(comparison: Results) -> str:
    """The result in a sentence or two."""
    by_verdict: dict[str, list[Difference]] = {}
    for row in comparison.differences:
        by_verdict.setdefault(row.verdict, []).append(row)
    parts = []
    for verdict in (BETTER, WORSE):
        if found := by_verdict.get(verdict):
            names = ", ".join(f"{_name(row)} ({_signed(row.mean)})" for row in found)
            parts.append(f"{verdict.capitalize()} than plain: {names}.")
    if found := by_verdict.get(NOT_RESOLVED):
        which = "None of the others" if parts else "No variant"
        parts.append(
            f"{which} differs significantly from plain; with this many seeds, {_missed(found)} may go undetected."
        )
    if found := by_verdict.get(NOISE_ONLY):
        parts.append(
            f"{len(found)} of {len(comparison.differences)} comparisons have fewer than 5 usable seeds, or differences "
            "that are the same at every seed: their numbers are an estimate of the noise only."
        )
    return " ".join(parts) or "No results yet."


def _missed(rows: list[Difference]) -> str:
    sizes = sorted(f"{row.detectable:.2g}" for row in rows if not math.isnan(row.detectable))
    if not sizes:
        return "any difference"
    low, high = min(sizes, key=float), max(sizes, key=float)
    return f"true differences below {low}" + (f" to {high} (depending on the variant)" if low != high else "")


def _name(row: Difference) -> str:
    return f"{row.variant} at {row.recipe}" if row.recipe else row.variant


def _row(row: Difference, resolve: float | None) -> tuple[str, ...]:
    p = "" if math.isnan(row.p) or row.variant == AGAIN else f"{row.p:.3f}" if row.p >= 0.001 else "< 0.001"
    return (
        *(row.variant, row.recipe, f"{row.seeds}", _signed(row.mean)),
        "" if math.isnan(row.low) else f"{_signed(row.low)} to {_signed(row.high)}",
        *(p, row.verdict, _remedy(row, resolve)),
        "" if row.test_noise is None else f"±{row.test_noise:.2f}",
    )


def _remedy(row: Difference, resolve: float | None) -> str:
    """How many seeds find the difference of interest, or which difference so many seeds find."""
    if row.verdict not in (NOT_RESOLVED, NOISE_ONLY) or row.variant == AGAIN or not row.sd > 0:
        return ""
    if resolve is not None:
        return f"{'over 100,000' if row.needed is None else row.needed} seeds detect {resolve:g}"
    return f"{row.seeds} seeds detect {row.detectable:.2g}"


def _cost_row(comparison: Results, variant: str, recipe: str) -> tuple[str, ...]:
    cells, costs = comparison.of(variant, recipe), comparison.costs(variant, recipe)
    values = [cell.value for cell in cells if cell.value is not None]
    failed = len(cells) - len(values)
    return (
        *(variant, recipe),
        (f"{mean(values):.2f}" if values else "") + (f" ({stdev(values):.2f})" if len(values) > 1 else ""),
        *(_cost_words(costs, comparison.costs(PLAIN) or costs) if costs else ("", "", "")),
        f"{failed} of {len(cells)}" if failed else "",
    )


def _cost_words(costs: Costs, plain: Costs) -> tuple[str, str, str]:
    added = costs.parameters - plain.parameters
    return (
        f"{costs.parameters:,}" + (f" ({added:+,})" if added else ""),
        _with_factor(costs.kept_bytes, plain.kept_bytes, 2**-20, "MiB"),
        _with_factor(costs.seconds, plain.seconds, 1e3, "ms"),
    )


def _with_factor(value: float | None, plain: float | None, scale: float, unit: str) -> str:
    """A cost, and how many times that of plain it is."""
    if value is None:
        return ""
    return f"{scale * value:.2f} {unit}" + (f" (\N{MULTIPLICATION SIGN}{value / plain:.2f})" if plain else "")


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
