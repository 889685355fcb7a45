"""The study of docs/compare.md: its report is what the committed cells give."""

import re
from pathlib import Path

import pytest

from simam_inject.compare import load_comparison

FOLDER = Path(__file__).parents[2] / "docs" / "compare"


@pytest.fixture(scope="module")
def comparison():
    return load_comparison(FOLDER / "glyphs.journal")


def test_the_report_is_rebuilt_from_the_cells(comparison):
    assert comparison.to_markdown() == (FOLDER / "glyphs.md").read_text(encoding="utf-8")
    page, committed = comparison.to_html(), (FOLDER / "glyphs.html").read_text(encoding="utf-8")
    # Figures differ between versions of matplotlib; what is said does not.
    words, there = (re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL) for text in (page, committed))
    assert words == there
    assert committed.count("<svg") == 3


def test_it_is_the_study_that_the_page_describes(comparison):
    assert len(comparison.cells) == comparison.total
    seeds = {cell.seed for cell in comparison.cells}
    assert len(seeds) >= 10
    assert {(row.variant, row.recipe) for row in comparison.differences} == {
        (variant, recipe)
        for variant in ("simam 0.0001", "simam 0.1", "se", "eca", "cbam", "gc")
        for recipe in ("paper", "residual")
    }
    for seed in seeds:
        assert len({cell.weights for cell in comparison.cells if cell.seed == seed}) == 1


def test_the_page_quotes_the_study(comparison):
    page = (FOLDER.parent / "compare.md").read_text(encoding="utf-8")
    for row in comparison.to_markdown().splitlines():
        if re.match(r"\| (plain again|simam|se|eca|cbam|gc)\b.*(better|worse|not resolved|noise estimate only)", row):
            assert row in page


def test_the_cells_say_nothing_of_the_machine_that_ran_them():
    text = (FOLDER / "glyphs.journal").read_text(encoding="utf-8")
    assert not re.search(r'"/(work|tmp|home|root)', text)
