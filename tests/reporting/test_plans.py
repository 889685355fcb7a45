"""The report of a plan: golden text, from records made by hand."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from simam_inject.planning.records import Check, Insertion, Skip, Verification
from simam_inject.reporting import plan_to_dict, render_plan, total
from simam_inject.reporting.formats import format_bytes, format_count, format_map, format_span

INSERTIONS = (
    Insertion("layer1.0", "after", (1, 256, 56, 56), 1e-4, 0, reduction=4),
    Insertion("layer1.0.relu[2]", "before", (1, 64, 56, 56), 0.1, 1, reader="layer1.0.conv3", reduction=4),
    Insertion(
        "stages.0", "after", (1, 7, 7, 96), 1e-4, 0, channel_dim=-1, runs=2, means="boundary", note="folding waits"
    ),
)
SKIPS = (
    Skip("se.fc1", "1x1 map", rule=0, hit=True),
    Skip("layer1.0.conv1", "the rule says conv2", rule=0, hit=False),
)
PASSED = Verification((Check("keys", True), Check("bypass", True), Check("oracle", None, "no site is a boundary")))
FAILED = Verification((Check("keys", True), Check("bypass", False, "off by 0.1 at layer1.0")))


def render(renderable, width=100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_whole_report():
    steps = ("train it", "save it")
    report = render_plan(INSERTIONS, SKIPS, PASSED, heading="resnet50: random weights", next_steps=steps)
    assert render(report, width=120) == Path(__file__).with_name("golden_plan.txt").read_text().splitlines()


def test_near_misses_show_only_when_asked_for():
    near = "near miss: the rule says conv2"
    assert not any(near in line for line in render(render_plan(INSERTIONS, SKIPS)))
    assert any(near in line for line in render(render_plan(INSERTIONS, SKIPS, why=True), width=130))


def test_a_dry_run_inserts_nothing():
    text = "\n".join(render(render_plan(INSERTIONS, (), applied=False)))
    assert "3 sites planned, 0 skipped;" in text
    assert "inserted" not in text
    assert "verif" not in text


def test_a_failure_says_which_check_and_what_it_found():
    lines = render(render_plan(INSERTIONS, (), FAILED))
    assert "verification failed: 1 of 2 checks" in lines
    assert "  failed: bypass: off by 0.1 at layer1.0" in lines
    assert not any(line.startswith("verified") for line in lines)


def test_nothing_run_is_not_called_verified():
    lines = render(render_plan(INSERTIONS, (), Verification((Check("bypass", None, "needs a device"),))))
    assert "not verified: no check could be run" in lines


def test_what_was_there_before_is_told_and_counted():
    lines = render(render_plan(INSERTIONS[1:], (), present=INSERTIONS[:1]), width=120)
    assert lines[2].split() == ["layer1.0", "after", "256x56x56", "4", "0.0001", "already", "there"]
    assert any(line.startswith("2 sites inserted, 1 already there, 0 skipped; parameters +0; 8.1 MB") for line in lines)
    data = plan_to_dict(INSERTIONS[1:], (), present=INSERTIONS[:1])
    assert [site["path"] for site in data["present"]] == ["layer1.0"]
    assert data["totals"]["sites"] == 3


def test_nothing_inserted_is_no_table():
    assert render(render_plan((), ()))[0].startswith("0 sites inserted, 0 skipped; parameters +0; 0 B moved")


def test_markup_in_a_path_is_only_text():
    insertion = Insertion("m[bold]x", "after", (1, 4, 8, 8), 1e-4, 0)
    assert any("m[bold]x" in line for line in render(render_plan((insertion,), ())))


def test_totals_are_per_image():
    assert total(INSERTIONS[:1]).bytes_per_image == 2 * 4 * 256 * 56 * 56
    assert total(INSERTIONS[:1], images=4).bytes_per_image == 2 * 256 * 56 * 56
    assert total(()).sites == 0


def test_dict_is_json_and_whole():
    data = plan_to_dict(INSERTIONS, SKIPS, PASSED)
    assert json.loads(json.dumps(data)) == data
    assert data["insertions"][1] == {
        "scope": INSERTIONS[1].scope,
        "path": "layer1.0.relu[2]",
        "position": "before",
        "shape": [1, 64, 56, 56],
        "e_lambda": 0.1,
        "rule": 1,
        "reader": "layer1.0.conv3",
        "channel_dim": 1,
        "dtype": "float32",
        "reduction": 4,
        "runs": 1,
        "means": "forward",
        "note": "",
        "bytes_moved": 2 * 4 * 64 * 56 * 56,
    }
    assert [skip["hit"] for skip in data["skips"]] == [True, False]
    assert data["totals"] == {"sites": 3, "parameters": 0, "bytes_per_image": sum(i.bytes_moved for i in INSERTIONS)}
    assert data["verification"]["ok"] is True
    assert data["verification"]["checks"][2] == {"name": "oracle", "ok": None, "detail": "no site is a boundary"}
    assert plan_to_dict((), ())["verification"] is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (43_700_000, "43.7 MB"), (2.5e9, "2.5 GB"), (3e15, "3e+03 TB")],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("shape", "channel_dim", "text"),
    [
        ((2, 8, 4), 1, "8x4"),
        ((2, 8, 4, 5, 6), 1, "8x4x5x6"),
        ((2, 4, 5, 8), -1, "8x4x5"),
        ((2, 8), 1, "(2, 8)"),
        (None, 1, "-"),
    ],
)
def test_maps(shape, channel_dim, text):
    assert format_map(shape, channel_dim) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), (["a"], "a"), (["a", "a"], "a"), (["a", "b"], "a, b"), (["a", "b", "a", "c"], "a .. c")],
)
def test_spans(values, text):
    assert format_span(values) == text


def test_counts():
    assert [format_count(1, "site"), format_count(2, "site"), format_count(2, "miss", "misses")] == [
        "1 site",
        "2 sites",
        "2 misses",
    ]


def test_a_verification_prints_one_check_a_line():
    assert str(FAILED) == "verification failed\n  ok: keys\n  failed: bypass: off by 0.1 at layer1.0"
    assert str(PASSED).splitlines() == [
        "verified",
        "  ok: keys",
        "  ok: bypass",
        "  not run: oracle: no site is a boundary",
    ]
    assert str(Verification((Check("oracle", None),))) == "not verified\n  not run: oracle"
