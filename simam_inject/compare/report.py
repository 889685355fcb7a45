"""The result of a comparison, and its report: Markdown, and one HTML file that needs no other file.

The words and tables of both are in `words.j2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from simam_inject.compare import figures, statistics
from simam_inject.compare.cells import AGAIN, PLAIN, WRONG_SIGN, Cell, Costs
from simam_inject.compare.statistics import NOISE_ONLY, Difference
from simam_inject.persist.files import in_one_step


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
        """Half of the 95 % interval of a difference over other test sets of this size; more seeds do not reduce it.

        None without `report.samples`, and for a metric that is not positive.
        """
        plain, other = (
            {cell.seed: cell for cell in self.of(*key) if cell.correct and cell.value is not None}
            for key in ((PLAIN, ""), (variant, recipe))
        )
        seeds = sorted(plain.keys() & other.keys())
        rights = [[arm[seed].right() for seed in seeds] for arm in (plain, other)]
        values = sum(arm[seed].value or 0.0 for arm in (plain, other) for seed in seeds)
        unit = values / (sum(float(right.mean()) for arm in rights for right in arm) or math.inf)
        return statistics.sample_noise(rights[0], rights[1], unit) if unit > 0 else None

    @property
    def starts_differ(self) -> bool:
        """The variants of some seed did not start from the same weights."""
        starts = {(cell.seed, cell.weights) for cell in self.cells if cell.weights}
        return len(starts) > len({seed for seed, _ in starts})

    @property
    def digits(self) -> int:
        """Decimals of the metric in the report: 2 for percent, 4 for fractions."""
        largest = max((abs(cell.value) for cell in self.cells if cell.value), default=100.0)
        return min(max(2, 3 - math.floor(math.log10(largest))), 9)

    @property
    def answer(self) -> str:
        """The result in a sentence or two."""
        return " ".join(_template("words.j2").module.answer(self).split())

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits the validity of the result."""
        return tuple(filter(None, map(str.strip, _template("words.j2").module.notes(self).splitlines())))

    def to_markdown(self) -> str:
        """The report as Markdown: tables and notes, without figures."""
        return self._render("report.md.j2")

    __str__ = to_markdown

    def to_html(self) -> str:
        """The report as one HTML page with its figures inside."""
        curves = {}
        for recipe in dict.fromkeys(row.recipe for row in self.differences):
            attended = [(row.variant, recipe) for row in self.differences if row.recipe == recipe]
            arms = [(PLAIN, ""), (AGAIN, ""), *attended]
            curves[recipe] = figures.draw_curves({arm[0]: self.of(*arm) for arm in arms})
        differences = figures.draw_differences(self._rows(), self.noise_floor)
        return self._render("report.html.j2", differences=differences, curves=curves)

    def save(self, html: str | Path | None = None, markdown: str | Path | None = None) -> None:
        """Write the report to files.

        Raises:
            FileError: one of them cannot be written.
        """
        for path, render in ((html, self.to_html), (markdown, self.to_markdown)):
            if path is not None:
                with in_one_step(Path(path)) as file:
                    file.write_text(render(), encoding="utf-8")

    def _rows(self) -> list[Difference]:
        return [*([] if self.noise_floor is None else [self.noise_floor]), *self.differences]

    def _render(self, template: str, **figures: Any) -> str:
        hidden = ("variants", "recipes")
        settings = [(key, value) for key, value in self.settings.items() if key not in hidden and value is not None]
        return str(_template(template).render(c=self, rows=self._rows(), settings=settings, **figures))


def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"WRONG_SIGN": WRONG_SIGN, "mean": mean, "stdev": stdev}
    environment.filters["signed"] = _signed
    environment.tests["known"] = lambda value: not math.isnan(value)
    return environment.get_template(name)


def _signed(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
