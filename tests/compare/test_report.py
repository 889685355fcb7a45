"""The report: what it says in words, that both forms say the same, and that one file is enough."""

import base64
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from simam_inject.compare.cells import Cell, Costs
from simam_inject.compare.report import Comparison

EFFECTS = {"simam": 0.1, "se": 2.5, "eca": -2.5}


def cells(seeds, effects=EFFECTS, recipe="paper"):
    """A study with effects that are known."""
    for seed in range(seeds):
        base = 60 + random.Random(seed).gauss(0, 1.5)
        for variant, effect in {"plain": 0.0, "plain again": 0.0, **effects}.items():
            noise = 0.0 if variant == "plain" else random.Random(f"{variant}{seed}").gauss(0, 0.8)
            value = base + effect + noise
            yield Cell(
                *(variant, "" if variant.startswith("plain") else recipe, seed, value),
                curve=((1, value - 9), (2, value)),
                costs=Costs(1000 + 40 * (variant == "se"), 2**20, 0.001),
            )


def study(seeds=10, **more):
    return Comparison(
        tuple(cells(seeds)), {"model": "resnet20", "epochs": 3}, {"command": "simam-inject compare"}, **more
    )


class Page(HTMLParser):
    """What refers to something outside the file, and the text that is shown."""

    def __init__(self):
        super().__init__()
        self.outside, self.text, self._hidden = [], [], False

    def handle_starttag(self, tag, attributes):
        self._hidden = tag == "style"
        self.outside += [f"{tag} {name}" for name, value in attributes if name in ("src", "href") and value[0] != "#"]
        self.outside += [tag] if tag in ("script", "link", "iframe", "img") else []

    def handle_data(self, data):
        if not self._hidden:
            self.text.append(data.strip())


@pytest.fixture(scope="module")
def page():
    return study().to_html()


def test_the_answer_in_words():
    words = study().answer.replace("\N{MINUS SIGN}", "-")
    better, worse, others, *_ = words.split(". ")
    assert re.search(r"Better .*: se at paper \(\+\d\.\d\d\)$", better)
    assert re.search(r"Worse .*: eca at paper \(-\d\.\d\d\)$", worse)
    assert re.search(r"None of the others .* below \d\.\d+", others)


@pytest.mark.parametrize(
    ("comparison", "answer"),
    [
        (study(4), "3 of 3 comparisons have fewer than 5 usable seeds"),
        (Comparison(tuple(cells(8, {"simam": 0.0})), {}), r"No variant differs .* below \d"),
        (Comparison((), {}), "No results yet"),
    ],
    ids=["too few seeds", "no effect", "no run"],
)
def test_without_a_verdict_the_answer_says_why(comparison, answer):
    assert re.search(answer, comparison.answer)
    assert not {row.verdict for row in comparison.differences} & {"better", "worse"}
    assert "better" not in comparison.to_markdown().replace("Better", "")


def test_seeds_for_the_difference_that_was_named():
    (simam, *_) = study(10, resolve=0.5).differences
    assert f"{simam.needed} seeds detect 0.5" in study(10, resolve=0.5).to_markdown()
    assert simam.needed > 10


def test_one_file_that_needs_nothing_beside_it(page):
    parsed = Page()
    parsed.feed(page)
    assert parsed.outside == []
    assert not re.search(r"url\((?!#)|@import", page)
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 2
    for svg in svgs:
        ET.fromstring(svg)


def test_both_forms_say_the_same(page):
    parsed = Page()
    parsed.feed(page)
    rows = [line for line in study().to_markdown().splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) == (1 + 4) + (1 + 5)  # plain again and three variants; plain has costs too
    for cell in {cell.strip() for row in rows for cell in row.split("|")} - {""}:
        assert cell in parsed.text
    assert "simam-inject compare" in parsed.text


def test_figures_show_every_variant_and_the_noise_floor(page):
    differences, curves = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for name in ("plain again", "simam · paper", "se · paper", "eca · paper"):
        assert name in differences
    assert "#e4e4e4" in differences  # the band
    assert differences.count("<use ") >= 4 * 10
    assert all(name in curves for name in ("plain", "simam", "epoch"))


def test_the_same_study_gives_the_same_file(page):
    assert page == study().to_html()


def test_an_error_message_cannot_write_html():
    broken = Cell("se", "paper", 11, None, error="ValueError: <script>alert(1)</script>")
    page = replace(study(), cells=(*cells(10), broken)).to_html()
    assert "1 of 51 runs failed. They are results" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_an_unfinished_study_says_so():
    page = study(6, total=100).to_html()
    assert "unfinished: 30 of 100 runs" in page


def test_a_noise_floor_that_is_off_zero_is_noted():
    moved = [replace(cell, value=cell.value + 3 * (cell.variant == "plain again")) for cell in cells(10)]
    (note,) = Comparison(tuple(moved), {}).notes
    assert re.search(r"plain again .* \+\d.* one study out of twenty", note)


def test_a_metric_of_fractions_has_more_decimals():
    fractions = [replace(cell, value=cell.value / 100) for cell in cells(10)]
    small, usual = Comparison(tuple(fractions), {}), study()
    words = usual.to_markdown()
    for row, other in zip(small.differences, usual.differences, strict=True):
        assert f"{row.mean:+.4f}".replace("-", "\N{MINUS SIGN}") in small.to_markdown()
        assert f"{other.mean:+.2f}".replace("-", "\N{MINUS SIGN}") in words


@pytest.mark.parametrize("lonely", [(), tuple(cell for cell in cells(1) if cell.variant != "plain")])
def test_a_study_without_any_pair_still_has_a_report(lonely):
    assert "<svg" in Comparison(lonely, {}).to_html()


def test_dollars_in_names_are_no_formulas():
    names = {"variant": r"x$\frac$", "recipe": r"y$\frac$"}
    made = [replace(cell, **names) if cell.recipe else cell for cell in cells(6)]
    assert r"x$\frac$" in replace(study(), cells=tuple(made)).to_html()


@pytest.mark.parametrize(("values", "is_known"), [((0.0, 50.0), True), ((-0.5, -0.6), False)])
def test_noise_of_the_test_set_where_a_metric_is_zero_or_negative(values, is_known):
    def made(cell):
        right = np.random.default_rng([cell.seed, len(cell.variant + cell.recipe)]).random(200) < 0.5
        packed = base64.b64encode(np.packbits(right).tobytes()).decode()
        return replace(cell, value=values[min(cell.seed, 1)], correct=packed, samples=200)

    noise = Comparison(tuple(map(made, cells(3))), {}).test_noise("simam", "paper")
    assert (noise is not None and noise > 0) is is_known
