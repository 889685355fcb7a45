"""The report of a plan, from records made by hand."""

import json

import pytest
import torch
from torch import nn

from simam_inject import plan
from simam_inject.dataflow.anatomy import Anatomy, Site
from simam_inject.dataflow.sites import Dataflow
from simam_inject.matching.hits import Skip
from simam_inject.planning.insertions import Input, Insertion, Output, Rewritten
from simam_inject.planning.plan import Insertions, Plan
from simam_inject.planning.tables import Table, format_map, format_span, notes_on, sites_table
from simam_inject.recipe import load_recipe
from simam_inject.reporting.plans import plan_to_dict, render_plan
from simam_inject.verification.checks import Check, Verification
from tests.reporting.printing import printed


def insertion(path, shape, **facts):
    facts = {"edit": Output(path), "module": f"{path}.simam", "reduction": 4, **facts}
    return Insertion(path, "after", shape, facts.pop("e_lambda", 1e-4), 0, facts.pop("edit"), **facts)


PLAIN = insertion("layer1.0", (1, 256, 56, 56))
INSERTIONS = (
    PLAIN,
    Insertion(
        "layer1.0.relu[2]",
        "before",
        (1, 64, 56, 56),
        0.1,
        1,
        Input("layer1.0.conv3", 0),
        "layer1.0.conv3.simam_input",
        reader="layer1.0.conv3",
        reduction=4,
    ),
    insertion(
        "stages.0",
        (1, 7, 7, 96),
        edit=Rewritten("stages.0", "add"),
        channel_dim=-1,
        axes="NHWC",
        runs=2,
        note="folding is refused",
        reduction=None,
    ),
)
SKIPS = (
    Skip("se.fc1", "1x1 map", rule=0, hit=True),
    Skip("se.fc2", "1x1 map", rule=0, hit=True),
    Skip("layer1.0.conv1", "the rule says conv2", rule=0, hit=False),
)
PASSED = Verification((Check("keys", True), Check("bypass", True), Check("oracle", None, "no float64")))
FAILED = Verification((Check("keys", True), Check("bypass", False, "off by 0.1 at layer1.0")))


def make_plan(insertions=INSERTIONS, skips=(), present=(), sites=(), inputs=((1, 3, 224, 224),)):
    return Plan(load_recipe("paper"), insertions, skips, Dataflow(Anatomy(sites, inputs), None, None), present)


def render(plan, width=100, **options) -> list[str]:
    return printed(*render_plan(plan, **{"applied": True, **options}), width=width)


def test_whole_report_at_80_columns():
    lines = render(make_plan(skips=SKIPS), width=80)
    cells = [line.split() for line in lines]
    assert cells[0] == ["site", "position", "CxHxW", "reduction", "e_lambda", "edit"]
    assert ["layer1.0", "after", "256x56x56", "4", "0.0001", "output"] in cells
    assert ["layer1.0.relu[2]", "before", "conv3", "64x56x56", "4", "0.1", "input"] in cells
    assert ["stages.0", "after", "96x7x7", "-", "0.0001", "expression"] in cells
    assert "note: stages.0: the axes are NHWC" in lines
    assert "note: stages.0: runs 2 times per forward" in lines
    assert "note: stages.0: folding is refused" in lines
    assert "skipped: 2 sites (se.fc1 .. se.fc2): 1x1 map" in lines
    assert "skipped: se.fc2: 1x1 map" in render(make_plan(skips=SKIPS), verbose=True)
    assert "near miss: layer1.0.conv1: the rule says conv2" in render(make_plan(skips=SKIPS), why=True)


def test_a_complete_table_says_the_axes():
    row = sites_table(INSERTIONS, complete=True).rows[2]
    assert row[-4:] == ["0.0001", "expression", "NHWC, measured", "stages.0.simam"]


def test_one_lambda_is_said_once():
    lines = render(make_plan((PLAIN,)))
    assert not any("e_lambda" in line for line in lines if "site" in line and "CxHxW" in line)
    assert any(line.startswith("1 site inserted with e_lambda 0.0001, 0 skipped; parameters +0; ") for line in lines)


def test_checks_that_are_not_ok_have_a_line():
    assert str(PASSED).splitlines() == ["verified: 2 checks", "  not run: oracle: no float64"]
    assert str(FAILED).splitlines() == ["verification failed", "  failed: bypass: off by 0.1 at layer1.0"]


def test_what_was_there_before_is_counted():
    plan = make_plan(
        INSERTIONS[1:], present=INSERTIONS[:1], skips=(Skip("layer1.0", "already has SimAM", 0, hit=True),)
    )
    lines = render(plan, width=120)
    assert ["layer1.0", "after", "256x56x56", "4", "0.0001", "output"] in [line.split() for line in lines]
    assert any(line.startswith("2 sites inserted, 1 already there, 0 skipped; parameters +0; 8.1 MB") for line in lines)
    data = plan_to_dict(plan)
    assert [site["path"] for site in data["present"]] == ["layer1.0"]
    assert data["totals"]["sites"] == 3


def test_markup_in_a_path_is_only_text():
    assert any("m[bold]x" in line for line in render(make_plan((insertion("m[bold]x", (1, 4, 8, 8)),))))


def test_bytes_are_per_image():
    moved = 2 * 4 * 256 * 56 * 56
    assert plan_to_dict(make_plan((PLAIN,)))["totals"]["bytes_per_image"] == moved
    batched = make_plan((insertion("layer1.0", (4, 256, 56, 56)),), inputs=((4, 3, 224, 224),))
    assert plan_to_dict(batched)["totals"]["bytes_per_image"] == moved


def test_dict_is_json_and_whole():
    data = plan_to_dict(make_plan(skips=SKIPS), PASSED)
    assert json.loads(json.dumps(data)) == data
    second = data["insertions"][1]
    assert (second["path"], second["reader"], second["shape"]) == (
        "layer1.0.relu[2]",
        "layer1.0.conv3",
        [1, 64, 56, 56],
    )
    assert second["edit"] == {"kind": "input", "module": "layer1.0.conv3", "argument": 0, "key": None}
    assert second["bytes_moved"] == 2 * 4 * 64 * 56 * 56
    assert [skip["hit"] for skip in data["skips"]] == [True, True, False]
    assert data["totals"] == {"sites": 3, "parameters": 0, "bytes_per_image": sum(i.bytes_moved for i in INSERTIONS)}
    assert data["verification"]["ok"] is True
    assert data["verification"]["checks"][2] == {"name": "oracle", "ok": None, "detail": "no float64"}
    assert plan_to_dict(make_plan(()))["verification"] is None


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
def test_a_map_is_written_as_channels_by_space(shape, channel_dim, text):
    assert format_map(Site("a", "", "relu", shape=shape, channel_dim=channel_dim)) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "-"), ([None], "-"), (["a", "a"], "a"), (["a", "b"], "a, b"), ([2, 4, 2, 16], "2 .. 16")],
)
def test_a_span_is_written_from_the_least_to_the_largest(values, text):
    assert format_span(values) == text


def test_a_table_knows_its_columns():
    table = Table(("site", "position", "ms", "note"), [("0", "after", "1.5", "x" * 20), ("1", "before b", "-", "")])
    assert table.kinds == ["name", "name", "number", "text"]
    assert table.without("ms").headings == ["site", "position", "note"]
    assert printed(table)[0].split() == ["site", "position", "ms", "note"]
    assert printed(table.without("note"))[3].endswith("  -")


def test_axes_that_no_run_shows_do_not_mean_one_input_size():
    waves = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 4, 5, padding=2), nn.Conv1d(4, 4, 5, padding=2))
    planned = plan(waves, "every-conv", example_inputs=torch.rand(2, 64))
    found = list(notes_on(planned.insertions))
    for note in found:
        assert note in str(planned)
        assert note in planned._repr_html_()
    assert [note for note in found if "axes are inferred" in note]
    assert not [note for note in found if "one input size" in note]


def test_in_a_notebook_long_tables_are_cut():
    few, many = make_plan((PLAIN,), skips=SKIPS), make_plan((PLAIN,) * 30)
    head, *rows = repr(few).splitlines()
    assert head == "Plan: 1 insertion, 2 skipped"
    assert rows[1].split() == ["layer1.0", "after", "256x56x56", "4", "0.0001", "output"]
    assert rows[2:] == ["  skipped 2: 1x1 map"]
    lines = repr(many).splitlines()
    assert len(lines) == 14
    assert lines[-2:] == ["  ... 19 more ...", lines[2]]
    assert repr(Insertions((PLAIN,))).startswith("1 SimAM site\n")
    assert repr(Insertions((PLAIN,) * 30)).splitlines()[1:] == lines[1:]
    for shown, count in ((few, "1 insertion, 2 skipped"), (Insertions((PLAIN,)), "1 SimAM site")):
        assert shown._repr_html_().startswith(f"<b>{count}</b><table><tr><th>site</th>")
        assert shown._repr_html_().count("<tr>") == 2
    html = many._repr_html_()
    assert html.count("<tr>") == 14
    assert html.endswith("<tr><td>... and 18 more</td></tr></table>")
    assert "&lt;b&gt;" in make_plan((insertion("<b>", (1, 2, 3, 3)),))._repr_html_()
