"""Ultralytics model files with SimAM in them, as people write them, become recipes against the stock model."""

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from simam_inject.errors import RecipeError
from simam_inject.recipe import load_recipe

FILE = Path(__file__).parents[2] / "simam_inject" / "integrations" / "ultralytics" / "model_files.py"


def load(path):
    """The file by itself, without the adapter around it: it needs no ultralytics."""
    spec = importlib.util.spec_from_file_location("model_files_alone", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


model_files = load(FILE)
import_model_yaml, write_recipe = model_files.import_model_yaml, model_files.write_recipe
STOCK = yaml.safe_load("""
nc: 4
depth_multiple: 0.33
width_multiple: 0.25
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 3, C2f, [128, True]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [-1, 6, C2f, [256, True]]
  - [-1, 1, Conv, [512, 3, 2]]
  - [-1, 3, C2f, [512, True]]
  - [-1, 1, SPPF, [512, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 3, C2f, [256]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [[-1, 7], 1, Concat, [1]]
  - [-1, 3, C2f, [512]]
  - [[10, 13], 1, Detect, [nc]]
""")

AFTER_SPPF = {
    "backbone": [*STOCK["backbone"], [-1, 1, "SimAM", []]],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C2f", [256]],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 8], 1, "Concat", [1]],
        [-1, 3, "C2f", [512]],
        [[11, 14], 1, "Detect", ["nc"]],
    ],
}
BEFORE_DETECT = {
    "head": [
        *STOCK["head"][:3],
        [-1, 1, "SimAM", [1024]],
        [10, 1, "Conv", [256, 3, 2]],
        [[-1, 7], 1, "Concat", [1]],
        [-1, 3, "C2f", [512]],
        [-1, 1, "SimAM", [512, 0.1]],
        [[11, 15], 1, "Detect", ["nc"]],
    ],
}
BEFORE_CONV = {
    "head": [
        *STOCK["head"][:3],
        [-1, 1, "SimAM", []],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 7], 1, "Concat", [1]],
        [-1, 3, "C2f", [512]],
        [[10, 14], 1, "Detect", ["nc"]],
    ],
}
DEAD = {
    "backbone": [*STOCK["backbone"][:3], [-1, 1, "SimAM", []], *STOCK["backbone"][3:]],
    "head": [
        STOCK["head"][0],
        [[-1, 5], 1, "Concat", [1]],
        STOCK["head"][2],
        STOCK["head"][3],
        [[-1, 8], 1, "Concat", [1]],
        STOCK["head"][5],
        [-1, 1, "SimAM", []],
        [[11, 14], 1, "Detect", ["nc"]],
    ],
}


def imported(tmp_path, parts):
    path = tmp_path / "yolov8-simam.yaml"
    path.write_text(yaml.safe_dump({**STOCK, **parts}), encoding="utf-8")
    return import_model_yaml(path)


def rules(found):
    return [
        {key: value for key, value in rule.items() if key != "e_lambda"} for rule in found.recipe.to_dict()["rules"]
    ]


def test_a_row_that_everyone_reads_is_after_its_layer(tmp_path):
    found = imported(tmp_path, AFTER_SPPF)
    assert rules(found) == [{"path": "model.7", "after": "output"}]
    assert found.notes == ()
    assert found.recipe.name == "yolov8-simam"
    assert found.recipe.rules[0].e_lambda == 1e-4


def test_a_row_that_some_read_is_before_those(tmp_path):
    found = imported(tmp_path, BEFORE_DETECT)
    assert found.recipe.to_dict()["rules"] == [
        {"path": "model.13", "after": "output", "e_lambda": 0.1},
        {"path": "model.14", "exclude": "model.13", "before": "input", "e_lambda": 0.0001},
    ]
    assert [note.split(":")[0] for note in found.notes] == ["row 11 (SimAM)", "row 15 (SimAM)"]
    assert "1024" in found.notes[0]
    assert "0.1" in found.notes[1]


def test_a_row_that_no_other_reads_is_left_out(tmp_path):
    found = imported(tmp_path, DEAD)
    assert rules(found) == [{"path": "model.2", "after": "output"}]
    assert [note.split(":")[0] for note in found.notes] == ["row 15 (SimAM)"]


def test_rows_that_were_not_numbered_anew_have_a_note(tmp_path):
    found = imported(tmp_path, {"backbone": AFTER_SPPF["backbone"]})  # with the head of the stock file
    assert [note.split(":")[0] for note in found.notes] == ["row 14 (C2f)"]


def test_rows_in_a_row_become_one(tmp_path):
    found = imported(
        tmp_path, {"backbone": [*STOCK["backbone"], [-1, 2, "SimAM", []], [-1, 1, "simam_module", [0.5]]], "head": []}
    )
    assert found.recipe.to_dict()["rules"] == [{"path": "model.7", "after": "output", "e_lambda": 0.5}]
    assert [note.split(":")[0] for note in found.notes] == ["row 8 (SimAM)", "row 9 (simam_module)"]


def with_row(place, module):
    """The stock file with another class at one row of the backbone."""
    rows = copy.deepcopy(STOCK["backbone"])
    rows[place][2] = module
    return {"backbone": rows}


BLOCKS = [
    # (class, the stock class, the rule)
    ("C2f_SimAM", "C2f", {"path": "model.2", "after": "output"}),
    ("C2fSimAM", "C2f", {"path": "model.2", "after": "output"}),
    ("c3_simam", "c3", {"path": "model.2", "after": "output"}),
    ("SimAM_C2f", "C2f", {"path": "model.2", "after": "output"}),
    ("C3k2_SIMAM", "C3k2", {"path": "model.2", "after": "output"}),
    ("Bottleneck_SimAM", "Bottleneck", {"block": "Bottleneck", "path": "model.2", "after": "cv2"}),
    ("BottleneckSimAM", "Bottleneck", {"block": "Bottleneck", "path": "model.2", "after": "cv2"}),
]


@pytest.mark.parametrize(("module", "stock", "rule"), BLOCKS)
def test_a_block_with_simam_inside_becomes_the_stock_block_and_a_rule(tmp_path, module, stock, rule):
    found = imported(tmp_path, with_row(2, module))
    assert rules(found) == [rule]
    (note,) = found.notes
    assert note.startswith(f"row 2 ({module}): read as {stock} ")


def test_a_head_with_simam_inside_gets_it_on_its_inputs(tmp_path):
    """Its output are predictions."""
    found = imported(tmp_path, {"backbone": STOCK["backbone"], "head": [[[4, 6], 1, "Detect_SimAM", ["nc"]]]})
    assert rules(found) == [{"path": "model.8", "before": "input"}]
    (note,) = found.notes
    assert note.startswith("row 8 (Detect_SimAM): read as Detect with SimAM on each feature map that it reads")
    found = imported(tmp_path, {"backbone": STOCK["backbone"], "head": [[[6], 1, "Classify_SimAM", ["nc"]]]})
    assert rules(found) == [{"path": "model.8", "before": "input"}]
    found = imported(tmp_path, {"backbone": STOCK["backbone"], "head": [[[4, 6], 1, "Concat_SimAM", [1]]]})
    assert rules(found) == [{"path": "model.8", "after": "output"}]


@pytest.mark.parametrize("module", ["SimAM3D", "SimAM_3d", "simam_module", "nn.SimAM", "SimAMBlock", "Simam_Attention"])
def test_other_spellings_are_a_simam_and_nothing_else(tmp_path, module):
    found = imported(tmp_path, {"backbone": [*STOCK["backbone"], [-1, 1, module, []]], "head": []})
    assert rules(found) == [{"path": "model.7", "after": "output"}]


def test_blocks_and_rows_together(tmp_path):
    backbone = with_row(2, "C2f_SimAM")["backbone"]
    found = imported(tmp_path, {"backbone": [*backbone[:3], [-1, 1, "SimAM", []], [-1, 1, "Conv", [9]]], "head": []})
    assert rules(found) == [{"path": "model.2", "after": "output"}]
    assert len(found.notes) == 2
    found = imported(tmp_path, {"backbone": [*backbone[:4], [-1, 1, "SimAM", []]], "head": []})
    assert rules(found) == [{"path": ["model.2", "model.3"], "after": "output"}]


def test_notes_are_shown_where_there_is_nothing_to_import(tmp_path):
    dead = {"head": [[-1, 3, "SimAM", [512]], [7, 1, "Detect", ["nc"]]]}
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, dead)
    assert str(caught.value).count("note: row 8 (SimAM)") == 3  # repeated; a channel count; read by no row


def test_it_needs_neither_ultralytics_nor_torch():
    code = f"import runpy, sys; sys.modules |= {{'ultralytics': None, 'torch': None}}; runpy.run_path({str(FILE)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FILE.parents[3])


REFUSED = [
    ({}, "backbone", "nothing to import"),
    ({"backbone": 3}, "backbone", "is missing"),
    ({"head": [[-1, 1, "SimAM"]]}, "head[0]", "[from, repeats, module, args]"),
    ({"head": ["SimAM"]}, "head[0]", "[from, repeats, module, args]"),
    ({"head": [[-1, "a", "SimAM", 3]]}, "head[0]", "[from, repeats, module, args]"),
    ({"head": [[9, 1, "SimAM", []]]}, "head[0]", "row 8 can read rows 0 to 7"),
    ({"head": [["x", 1, "SimAM", []]]}, "head[0]", "reads row 'x'"),
    ({"head": [[[1, 2], 1, "SimAM", []]]}, "head[0]", "reads one layer; found 1 and 2"),
    ({"backbone": [[-1, 1, "SimAM", []], *STOCK["backbone"]]}, "backbone[0]", "the input image"),
    ({"head": [[-1, 1, "SimAM", []], [7, 1, "Detect", ["nc"]]]}, "backbone", "row 8 (SimAM)"),
    ({"head": [[-1, 1, "SimAM", []], [[7, 8], 1, "Concat", [1]]]}, "head[1]", "row 7 both plain and through a SimAM"),
    ({"head": [[7, 1, "Conv", [9]], [7, 1, "SimAM", []]]}, "head[1]", "other rows read row 7 plain"),
    ({"head": [[7, 1, "SimAM", []], [7, 1, "Conv", [9]], [[8, -11], 1, "Concat", []]]}, "head[2]", "input image too"),
]


@pytest.mark.parametrize(("parts", "place", "fact"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_imported_says_where_and_why(tmp_path, parts, place, fact):
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, parts)
    message = str(caught.value)
    assert message.startswith(f"{place}: ")
    assert fact in message
    assert message.endswith(f" (in {tmp_path / 'yolov8-simam.yaml'})")


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"^recipe: cannot read .*: No such file"):
        import_model_yaml(tmp_path / "gone.yaml")
    (tmp_path / "a.yaml").write_text("- a")
    with pytest.raises(RecipeError, match=r"^recipe: found a list; .*'backbone' and 'head'"):
        import_model_yaml(tmp_path / "a.yaml")


def test_the_written_recipe_reads_back(tmp_path):
    found = imported(tmp_path, BEFORE_DETECT)
    path = tmp_path / "out.yaml"
    path.write_text(write_recipe(found.recipe), encoding="utf-8")
    assert load_recipe(path) == found.recipe


@pytest.mark.parametrize("parts", [AFTER_SPPF, BEFORE_CONV, DEAD], ids=["after SPPF", "before Conv", "with a dead row"])
def test_the_stock_model_with_the_recipe_is_the_model_of_the_file(tmp_path, monkeypatch, parts):
    torch = pytest.importorskip("torch")
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    from simam_inject import SimAM, inject, injected

    monkeypatch.setattr(tasks, "SimAM", SimAM, raising=False)
    found = imported(tmp_path, parts)
    theirs = tasks.DetectionModel(copy.deepcopy({**STOCK, **parts}), verbose=False).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # an untrained YOLO barely reacts to its early layers
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.3, 0.6)
    ours = tasks.DetectionModel(copy.deepcopy(STOCK), verbose=False).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(1, 3, 64, 64)
    plain = ours(x)[0].detach()
    inject(ours, found.recipe, example_inputs=x)
    assert len(injected(ours)) == 1
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    assert not torch.allclose(plain, theirs(x)[0])
