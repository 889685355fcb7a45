"""The report of a comparison: Markdown, and one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from simam_inject.compare import figures
from simam_inject.compare.records import AGAIN, PLAIN, Costs, Results
from simam_inject.compare.statistics import BETTER, NOISE_ONLY, NOT_RESOLVED, WORSE, Difference
from simam_inject.errors import CompareError

_HEAD = (
    "variant",
    "recipe",
    "seeds",
    "difference",
    "95 % interval",
    "p (Holm)",
    "verdict",
    "80 % power",
    "test set",
)
_COST_HEAD = ("variant", "recipe", "mean (sd)", "parameters", "saved for backward", "forward time", "failed")
_TIMES = "\N{MULTIPLICATION SIGN}"
METHOD = (
    "Difference: mean over the seeds of the variant's result minus the result of plain for the same seed; both start "
    "from the same weights and see the data in the same order for the same number of epochs. The interval is a t "
    "interval for that difference alone. p is from a paired t test with Holm's correction over all comparisons in this "
    "table; the verdict follows p. Plain again is plain with another data order: its true difference is zero, so it "
    "shows the noise. 80 % power: how many seeds detect which difference. Test set: half of the 95 % interval of the "
    "difference over test sets of this size, with independent samples."
)


def render_markdown(comparison: Results) -> str:
    """Tables and notes, without figures."""
    data = describe(comparison)
    lines = [f"# {data['title']}", "", data["answer"], ""]
    lines += [f"* {note}" for note in data["notes"]] + [""] * bool(data["notes"])
    lines += [_table(_HEAD, data["rows"]), "", _table(_COST_HEAD, data["costs"]), ""]
    if data["failures"]:
        lines += ["Failed runs:", ""]
        lines += [f"* {where}: {' '.join(error.split())}" for where, error in data["failures"]] + [""]
    lines += [METHOD, ""]
    lines += [f"    {key}: {value}" for key, value in data["made_with"]]
    return "\n".join(lines) + "\n"


def render_html(comparison: Results) -> str:
    """One page with the figures inside."""
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
        **describe(comparison),
        head=_HEAD,
        cost_head=_COST_HEAD,
        method=METHOD,
        forest=figures.draw_forest(comparison),
        pairs=figures.draw_pairs(comparison),
        curves=figures.draw_curves(comparison),
    )


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
    cells, plain = comparison.of(variant, recipe), comparison.costs(PLAIN)
    values = [cell.value for cell in cells if cell.value is not None]
    costs = comparison.costs(variant, recipe)
    mean = sum(values) / len(values) if values else math.nan
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan
    failed = len(cells) - len(values)
    return (
        *(variant, recipe),
        f"{mean:.2f}" + (f" ({spread:.2f})" if len(values) > 1 else "") if values else "",
        *_cost_words(costs, plain),
        f"{failed} of {len(cells)}" if failed else "",
    )


def _cost_words(costs: Costs | None, plain: Costs | None) -> tuple[str, str, str]:
    if costs is None:
        return "", "", ""
    base = costs if plain is None else plain
    parameters = f"{costs.parameters:,}"
    if costs.parameters != base.parameters:
        parameters += f" ({costs.parameters - base.parameters:+,})"
    kept = "" if costs.kept_bytes is None else f"{costs.kept_bytes / 2**20:.2f} MiB"
    if costs.kept_bytes is not None and base.kept_bytes:
        kept += f" ({_TIMES}{costs.kept_bytes / base.kept_bytes:.2f})"
    seconds = "" if costs.seconds is None else f"{1e3 * costs.seconds:.2f} ms"
    if costs.seconds is not None and base.seconds:
        seconds += f" ({_TIMES}{costs.seconds / base.seconds:.2f})"
    return parameters, kept, seconds


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
