"""Everything that names a recipe, and what the record says."""

import copy
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simam_inject.errors import RecipeError
from simam_inject.recipe import Recipe, Rule, Where, load_recipe, read_shipped, shipped_recipes, texts
from simam_inject.recipe.names import BlockValue, Child, Glob
from simam_inject.recipe.operations import Operation

FULL = {
    "version": 1,
    "name": "full",
    "description": "every key",
    "e_lambda": 0.1,
    "rules": [
        {"block": ["BasicBlock", "Bottleneck"], "after": "conv2"},
        {"block": "InvertedResidual", "after": {"op": "conv2d", "groups": "depthwise"}},
        {
            "pattern": "conv2d > batch_norm > relu",
            "path": "layer[34].*",
            "exclude": ["*.downsample.*", "x"],
            "after": "batch_norm",
            "where": {
                "channels": ">=64",
                "spatial": "<=56",
                "reduction": [8, 16, 32],
                "stage": [3, 4],
                "kernel": 3,
                "stride": 1,
            },
            "pick": {"last": 1, "per": "reduction"},
            "e_lambda": 0.01,
            "optional": True,
        },
        {"path": "head", "before": {"op": ["conv2d", "linear"], "kernel": [1, "3x3"]}, "pick": "first"},
        {"structure": ["main", "residual"], "after": {"op": "conv", "kernel": "!=1", "which": "last"}},
        {"structure": "decoder", "after": "output:p3"},
    ],
}


def test_a_mapping_round_trips_through_the_record():
    recipe = load_recipe(FULL)
    written = recipe.to_dict()
    assert json.loads(json.dumps(written)) == written
    assert Recipe.from_dict(written) == recipe
    rules = FULL["rules"]
    assert written == FULL | {"rules": [*rules[:3], rules[3] | {"pick": {"first": 1}}, *rules[4:]]}


def test_the_record_is_frozen_hashable_and_copies():
    recipe = load_recipe(FULL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"
    with pytest.raises(ValueError, match="frozen"):
        recipe.rules[0].block = ()
    with pytest.raises(ValueError, match="frozen"):
        del recipe.name
    assert hash(recipe) == hash(load_recipe(FULL))
    assert copy.deepcopy(recipe) == pickle.loads(pickle.dumps(recipe)) == recipe
    assert load_recipe(recipe) is recipe


def test_a_rule_offers_parsed_views():
    first, second, third, fourth, fifth, sixth = load_recipe(FULL).rules
    assert first.block == ("BasicBlock", "Bottleneck")
    assert (first.position, first.target, first.chain, first.path) == ("after", Child(Glob("conv2")), (), ())
    assert isinstance(second.target, Operation)
    assert str(second.target) == "{op: conv2d, groups: depthwise}"
    assert [link.kind for link in third.chain] == ["conv2d", "batch_norm", "relu"]
    assert dict(third.conditions) == FULL["rules"][2]["where"] | {"reduction": (8, 16, 32), "stage": (3, 4)}
    assert (third.e_lambda, third.optional, first.e_lambda, first.optional) == (0.01, True, None, False)
    assert (fourth.position, str(fourth.target)) == ("before", "{op: [conv2d, linear], kernel: 1 or 3x3}")
    assert fourth.selector == "path head, before {op: [conv2d, linear], kernel: 1 or 3x3}"
    assert (fifth.structure, sixth.structure) == (("main", "residual"), "decoder")
    assert fifth.selector == "structure main or residual, after {op: conv, kernel: !=1, which: last}"
    assert sixth.target == BlockValue("output", "p3")
    assert third.selector == "pattern conv2d > batch_norm > relu, after batch_norm"


def test_python_builds_the_same_record():
    built = Recipe(
        name="x",
        e_lambda=0.1,
        rules=[Rule(block="Bottleneck", after="conv2", where=Where(channels=">=64", stage=[3, 4]))],
    )
    assert built == Recipe.from_dict(
        {
            "name": "x",
            "e_lambda": 0.1,
            "rules": [{"block": "Bottleneck", "after": "conv2", "where": {"channels": ">=64", "stage": [3, 4]}}],
        }
    )


SELECTORS = [
    ("after bottleneck", "bottleneck", "after", BlockValue("output")),
    ("  after   Bottleneck ", "Bottleneck", "after", BlockValue("output")),
    ("AFTER Bottleneck", "Bottleneck", "after", BlockValue("output")),
    ("after bottleneck.conv2", "bottleneck", "after", Child(Glob("conv2"))),
    ("after bottleneck.relu[2]", "bottleneck", "after", Child(Glob("relu"), 2)),
    ("after bottleneck.relu[*]", "bottleneck", "after", Child(Glob("relu"), 0)),
    ("after bottleneck.downsample.0", "bottleneck", "after", Child(Glob("downsample.0"))),
    ("after {c2f,c3.*}.m.0", "{c2f,c3.*}", "after", Child(Glob("m.0"))),
    ("after basicblock.output", "basicblock", "after", BlockValue("output")),
    ("before basicblock.bn2", "basicblock", "before", Child(Glob("bn2"))),
    ("before basicblock.residual", "basicblock", "before", BlockValue("residual")),
    ("before detect", "detect", "before", BlockValue("input")),
    ("before detect.input", "detect", "before", BlockValue("input")),
]


@pytest.mark.parametrize(("text", "block", "position", "target"), SELECTORS, ids=lambda value: str(value)[:40])
def test_a_selector_is_one_rule(text, block, position, target):
    recipe = load_recipe(text)
    (rule,) = recipe.rules
    assert (rule.block, rule.position, rule.target) == (block, position, target)
    assert recipe.name == f"{position} {text.split(None, 1)[1].strip()}"


def test_a_file_is_read_by_path_and_named_after_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rules: [{block: Bottleneck, after: conv2}]", encoding="utf-8")
    assert load_recipe(path).name == load_recipe(str(path)).name == "mine"
    assert load_recipe(path).rules == load_recipe("after Bottleneck.conv2").rules
    path.write_text("name: other\nrules: [{block: Bottleneck, after: conv2}]", encoding="utf-8")
    assert load_recipe(path).name == "other"


def test_mistakes_in_a_file_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rules: [{block: Bottleneck, aftr: conv2}]", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- a", encoding="utf-8")
    for source, message in (
        (path, r"^rules\[0\].aftr: unknown key; .*'after'.*\(in .*mine.yaml\)$"),
        (tmp_path / "list.yaml", r"^recipe: found a list; .*list.yaml\)$"),
        (tmp_path / "gone.yaml", r"^recipe: cannot read .*gone.yaml: No such file or directory$"),
        (f"{tmp_path}/", r"^recipe: cannot read .*: Is a directory$"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(source)


@pytest.mark.parametrize("source", ["a\0b", "x" * 10_000, "../etc/passwd", "", "after", "paper.yml"])
def test_what_names_nothing_is_refused(source):
    with pytest.raises(RecipeError, match=r"^recipe: "):
        load_recipe(source)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("rules:\n- {block: A, after: output, where: {channels: }}", "rules[0].where.channels"),
        ("rules:\n- block: A\n  after: output\n  exclude:", "rules[0].exclude"),
        ('{"rules": [{"block": "A", "after": "output", "e_lambda": null}]}', "rules[0].e_lambda"),
        ("rules:\n- {block: A, after: output}\nextends:", "extends"),
        ("rules:\n- {block: A, after: output, where: {'*': }}", "rules[0].where.'*'"),
    ],
)
def test_a_key_without_a_value_is_a_mistake_in_a_file(text, place, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=rf"{re.escape(place)}: has no value"):
        load_recipe(file)


def test_extends_puts_the_own_rules_first():
    base = load_recipe("paper")
    recipe = Recipe.from_dict(
        {"extends": "paper", "rules": [{"block": "Bottleneck", "after": "conv2", "e_lambda": 1.5}]}
    )
    assert recipe.rules[1:] == base.rules
    assert (recipe.rules[0].e_lambda, recipe.e_lambda, recipe.extends) == (1.5, base.e_lambda, None)
    assert Recipe.from_dict({"extends": "paper"}).rules == base.rules
    assert Recipe.from_dict({"extends": "paper", "e_lambda": 0.5}).e_lambda == 0.5
    assert Recipe(extends="paper", rules=[Rule(block="A", after="b")]).rules[1:] == base.rules
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_extends_takes_shipped_names_only():
    for name in ("papr", "../recipes/paper", "paper.yaml", "recipes/paper"):
        with pytest.raises(RecipeError, match=r"^extends: no shipped recipe is named "):
            Recipe.from_dict({"extends": name})


def test_every_shipped_recipe_loads_and_says_what_it_is_for():
    assert {"paper", "block-output", "residual", "stage-end", "every-conv", "convnext", "mobile", "unet"} <= set(
        shipped_recipes()
    )
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert "# Source: " in read_shipped(name), "each says where it comes from"
        assert "[SimAM]" in read_shipped(name), "and draws the place"
        assert load_recipe(recipe.to_dict()) == recipe


def test_the_shelf_is_found_beside_the_package_and_in_a_checkout(tmp_path, monkeypatch):
    packaged = tmp_path / "recipes"
    packaged.mkdir()
    (packaged / "paper.yaml").write_text("rules: [{block: Mine, after: output}]", encoding="utf-8")
    assert "block-output" in shipped_recipes()
    monkeypatch.setattr(texts, "files", lambda package: tmp_path)
    assert shipped_recipes() == ("paper",)
    assert load_recipe("paper").rules[0].block == "Mine"
    monkeypatch.setattr(texts, "files", lambda package: tmp_path / "nowhere")
    assert "block-output" in shipped_recipes()
    monkeypatch.setattr(texts, "__file__", str(tmp_path / "a" / "b" / "c" / "texts.py"))
    with pytest.raises(RecipeError, match=r"^recipe: the shipped recipes are missing from this installation"):
        shipped_recipes()


def test_reading_a_recipe_needs_no_torch():
    code = (
        "import sys; from simam_inject.recipe import load_recipe; load_recipe('paper'); print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"


def test_the_recipes_for_any_network_name_no_class():
    for name in ("paper", "block-output", "residual", "stage-end", "unet"):
        for rule in load_recipe(name).rules:
            assert rule.selects == "structure"
            assert not rule.optional


@pytest.mark.long
def test_the_types_that_a_caller_may_write_are_the_types_that_mypy_accepts(tmp_path):
    code = tmp_path / "user.py"
    code.write_text(
        "from simam_inject.recipe import Recipe, RecipeLike, Rule, load_recipe\n"
        'source: RecipeLike = {"rules": []}\n'
        'rule = Rule(block=["A", "B"], after={"op": "conv"}, where={"stage": [3, 4]}, pick="last", e_lambda=1)\n'
        'recipe: Recipe = Recipe(rules=[rule, Rule(structure="main", after="output", pick={"last": 1})])\n'
        "load_recipe(recipe)\n",
        encoding="utf-8",
    )
    api = pytest.importorskip("mypy.api")
    root = Path(__file__).parents[2]
    output, errors, status = api.run(
        ["--strict", "--follow-imports=silent", "--config-file", str(root / "pyproject.toml"), str(code)]
    )
    assert status == 0, output + errors


@pytest.mark.parametrize(
    "text", ["bottleneck.conv2", "after: bottleneck", "conv2d > bottleneck", "residual+paper", '{"rules": []}']
)
def test_what_does_not_look_like_a_name_gets_no_name_as_hint(text):
    with pytest.raises(RecipeError, match=r"a selector such as 'after bottleneck\.conv2'$"):
        load_recipe(text)


def test_one_rule_without_a_list_is_refused():
    with pytest.raises(RecipeError, match=r"^rules: found a Rule; expected a list: \[Rule\(...\)\]$"):
        Recipe(rules=Rule(block="A", after="b"))
