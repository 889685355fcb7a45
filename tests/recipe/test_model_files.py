# ruff: noqa: E501  (tables: a case, and its message word for word, stay on one line)
"""Ultralytics model files with SimAM rows, as people write them, become recipes against the stock model."""

import copy

import pytest
import torch
import yaml

from simam_inject import SimAM, inject, injected
from simam_inject.errors import RecipeError
from simam_inject.recipe import load_recipe
from simam_inject.recipe.from_yaml import import_model_yaml, write_recipe

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
    assert found.stock == STOCK
    assert found.recipe.name == "yolov8-simam"
    assert found.recipe.rules[0].e_lambda == 1e-4


def test_a_row_that_some_read_is_before_those(tmp_path):
    found = imported(tmp_path, BEFORE_DETECT)
    assert found.recipe.to_dict()["rules"] == [
        {"path": "model.13", "after": "output", "e_lambda": 0.1},
        {"path": "model.14", "exclude": "model.13", "before": "input", "e_lambda": 0.0001},
    ]
    assert found.notes == (
        "row 11 (SimAM): 1024 is no lambda but, it seems, a channel count, and would make the gate a constant; the recipe has 0.0001",
        "row 15 (SimAM): 512 is no lambda but, it seems, a channel count, and would make the gate a constant; the recipe has 0.1",
    )  # fmt: skip


def test_a_row_that_nobody_reads_is_dead(tmp_path):
    found = imported(tmp_path, DEAD)
    assert rules(found) == [{"path": "model.2", "after": "output"}]
    assert found.notes == ("row 15 (SimAM): dead, nobody reads it; the recipe leaves it out",)
    assert found.stock == STOCK


def test_rows_in_a_row_become_one(tmp_path):
    found = imported(
        tmp_path, {"backbone": [*STOCK["backbone"], [-1, 2, "SimAM", []], [-1, 1, "simam_module", [0.5]]], "head": []}
    )
    assert found.recipe.to_dict()["rules"] == [{"path": "model.7", "after": "output", "e_lambda": 0.5}]
    assert found.notes == (
        "row 8 (SimAM): repeated 2 times; the recipe has one",
        "row 9 (simam_module): attends what row 8, a SimAM too, attends; the recipe has one",
    )


def test_a_block_with_simam_inside_is_named(tmp_path):
    backbone = [*STOCK["backbone"][:2], [-1, 3, "C2f_SimAM", [128, True]], [-1, 1, "SimAM", []]]
    found = imported(tmp_path, {"backbone": backbone, "head": []})
    assert found.notes == (
        (
            "row 2 (C2f_SimAM): a block class of its own; only rows that are a SimAM are read. The recipes yolo-bottleneck and "
            "yolo-concat put SimAM inside the stock blocks"
        ),
    )


REFUSED = [
    ({}, "backbone: no row of this model file is a SimAM, so there is nothing to import"),
    ({"backbone": 3}, "backbone: is missing; an ultralytics model file lists its layers under backbone and head"),
    ({"head": [[-1, 1, "SimAM"]]}, "head[0]: found a list; a row is [from, repeats, module, args], e.g. [-1, 1, SimAM, []]"),
    ({"head": ["SimAM"]}, "head[0]: found 'SimAM'; a row is [from, repeats, module, args], e.g. [-1, 1, SimAM, []]"),
    ({"head": [[9, 1, "SimAM", []]]}, "head[0]: reads row 9; row 8 can read rows 0 to 7, or -1 for the one before"),
    ({"head": [["x", 1, "SimAM", []]]}, "head[0]: reads row 'x'; row 8 can read rows 0 to 7, or -1 for the one before"),
    ({"head": [[-1, "a", "SimAM", 3]]}, "head[0]: found 'a' repeats and 3 of args; e.g. [-1, 1, SimAM, []]"),
    ({"head": [[[1, 2], 1, "SimAM", []]]}, "head[0]: a SimAM reads one layer; found 1 and 2"),
    ({"backbone": [[-1, 1, "SimAM", []], *STOCK["backbone"]]}, "backbone[0]: attends the input image, which is no layer of the stock model"),
    (
        {"head": [[-1, 1, "SimAM", []], [7, 1, "Detect", ["nc"]]]},
        "backbone: nobody reads a SimAM of this model file: row 8 (SimAM): dead, nobody reads it; the recipe leaves it out",
    ),
    (
        {"head": [[-1, 1, "SimAM", []], [[7, 8], 1, "Concat", [1]]]},
        "head[1]: reads row 7 both plain and through a SimAM; no recipe can tell the two apart",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_imported_says_where_and_why(tmp_path, parts, message):
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, parts)
    assert str(caught.value) == f"{message} (in {tmp_path / 'yolov8-simam.yaml'})"


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"^recipe: cannot read .*: No such file"):
        import_model_yaml(tmp_path / "gone.yaml")
    (tmp_path / "a.yaml").write_text("- a")
    with pytest.raises(
        RecipeError, match=r"^recipe: found a list; a model file is a mapping with 'backbone' and 'head'"
    ):
        import_model_yaml(tmp_path / "a.yaml")


def test_the_written_recipe_reads_back(tmp_path):
    found = imported(tmp_path, BEFORE_DETECT)
    path = tmp_path / "out.yaml"
    path.write_text(write_recipe(found.recipe), encoding="utf-8")
    assert load_recipe(path) == found.recipe


@pytest.mark.parametrize("parts", [AFTER_SPPF, DEAD], ids=["after SPPF", "with a dead row"])
def test_the_stock_model_with_the_recipe_is_the_model_of_the_file(tmp_path, monkeypatch, parts):
    from ultralytics.nn import tasks

    monkeypatch.setattr(tasks, "SimAM", SimAM, raising=False)
    found = imported(tmp_path, parts)
    theirs = tasks.DetectionModel(copy.deepcopy({**STOCK, **parts}), verbose=False).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # an untrained YOLO barely reacts to its early layers
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.3, 0.6)
    ours = tasks.DetectionModel(copy.deepcopy(found.stock), verbose=False).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(1, 3, 64, 64)
    plain = ours(x)[0].detach()
    inject(ours, found.recipe, example_inputs=x)
    assert len(injected(ours)) == 1
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    assert not torch.allclose(plain, theirs(x)[0])
