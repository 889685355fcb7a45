"""`simam-inject MODEL --after X`: what is reported, what is returned, what a mistake says."""

import json
import re

import pytest
import torch

from simam_inject import injected
from simam_inject.verification.checks import Check, Verification

NET = "nets.py:Net"
SMALL = ("--input-size", "3x32x32")


def test_report_of_a_verified_injection(run):
    result = run(NET, "--after", "block", *SMALL)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["blocks.0", "after", "8x16x16", "2", "output"] in lines
    assert ["blocks.1", "after", "8x16x16", "2", "output"] in lines
    assert re.search(r"2 sites inserted .*0\.0001, 0 skipped; parameters \+0; 32\.8 kB", result.stdout)
    assert re.findall("^verified: .*", result.stdout, re.MULTILINE) == ["verified: 7 checks"]
    assert "'after block', example_inputs=torch.rand(1, 3, 32, 32)" in result.stdout
    assert "weights as Net makes them" in result.stdout


def test_the_size_is_part_of_the_next_step_unless_the_model_declares_it(run):
    def advice(*options):
        return re.search(r"inject\(model, (.*)\)\n", run("timm:test_resnet", *place, *options).stdout)[1]

    place = ("--after", "basicblock")
    assert advice() == advice("--input-size", "3x160x160") == "'after basicblock'"
    assert advice("--input-size", "3x224x224") == "'after basicblock', example_inputs=torch.rand(1, 3, 224, 224)"


def test_verbose_names_each_check_and_quiet_prints_nothing(run):
    loud = run(NET, "--after", "block", *SMALL, "--verbose")
    assert sum(line.startswith("  ok: ") for line in loud.stdout.splitlines()) == 7
    quiet = run("nets.py:make_noisy", "--after", "block", *SMALL, "--quiet")
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    assert run(NET, "--after", "blokc", *SMALL, "--quiet").exit_code == 1


def test_selectors_recipes_and_options_are_one_recipe(run, folder):
    (folder / "own.yaml").write_text("e_lambda: 0.1\nrules: [{block: Block, after: conv1, e_lambda: 0.2}]")
    places = ("--recipe", "own.yaml", "--after", "block.bn1", "--before", "block.conv2", "--exclude", "blocks.1.*")
    result = run(NET, *places, *SMALL, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert [(site["path"], site["position"], site["e_lambda"]) for site in data["insertions"]] == [
        ("blocks.0.conv1", "after", 0.2),
        ("blocks.0.bn1", "after", 0.1),
        ("blocks.0.relu", "before", 0.1),
    ]
    assert data["recipe"]["name"] == "own, after block.bn1, before block.conv2"
    assert all(rule["exclude"] in ("blocks.1.*", ["blocks.1.*"]) for rule in data["recipe"]["rules"])


def test_several_recipes_keep_their_lambdas(run, folder):
    (folder / "own.yaml").write_text("e_lambda: 0.1\nrules: [{block: Block, after: conv1}]")
    (folder / "other.yaml").write_text("e_lambda: 0.2\nrules: [{block: Block, after: bn1}]")
    places = ("--recipe", "own.yaml", "--recipe", "other.yaml", "--before", "block.conv2", "--exclude", "blocks.1.*")
    data = json.loads(run(NET, *places, *SMALL, "--json").stdout)
    assert [(site["path"], site["e_lambda"]) for site in data["insertions"]] == [
        ("blocks.0.conv1", 0.1),
        ("blocks.0.bn1", 0.2),
        ("blocks.0.relu", 0.1),
    ]


def test_e_lambda_overrides_every_rule(run, folder):
    (folder / "own.yaml").write_text("rules: [{block: Block, after: conv1, e_lambda: 0.2}]")
    data = json.loads(run(NET, "--recipe", "own.yaml", "--e-lambda", "0.5", *SMALL, "--json").stdout)
    assert {site["e_lambda"] for site in data["insertions"]} == {0.5}


def test_json_is_all_there_is_on_stdout(run):
    result = run("nets.py:make_noisy", "--after", "block", *SMALL, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert result.stderr == "a factory that talks\n"
    assert (data["model"], data["source"], data["output"]) == ("nets.py:make_noisy", "nets.py", None)
    assert [site["path"] for site in data["insertions"]] == ["blocks.0", "blocks.1"]
    assert data["insertions"][0]["edit"] == {"kind": "output", "module": "blocks.0", "key": None}
    assert data["totals"] == {"sites": 2, "parameters": 0, "bytes_per_image": 2 * 2 * 4 * 8 * 16 * 16}
    assert data["verification"]["ok"] is True


def test_a_dry_run_changes_nothing(run):
    result = run(NET, "--after", "block", *SMALL, "--dry-run")
    assert result.exit_code == 0
    assert "2 sites planned" in result.stdout
    assert "verified" not in result.stdout
    assert "the same command without --dry-run" in result.stdout


def test_near_misses_only_with_why(run):
    place = ("--after", "block", "--exclude", "blocks.1", *SMALL, "--dry-run")
    short = run(NET, *place).stdout
    assert "near miss:" not in short
    assert "1 near miss (see --why)" in short
    assert "near miss: blocks.1: " in run(NET, *place, "--why").stdout


def test_a_map_of_one_pixel_is_skipped_with_its_reason(run, folder):
    (folder / "own.yaml").write_text("rules: [{path: '*', after: {op: conv2d}}]")
    result = run(NET, "--recipe", "own.yaml", *SMALL, "--dry-run")
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("skipped: ")]
    assert "pool.1" in line
    assert "1x1" in line


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (("resnet5O", "--after", "block"), 2, "Did you mean resnet50"),
        ((NET, "--after", "blokc"), 1, "Did you mean Block"),
        ((NET, "--after", "block", "--exclude", "blocs.1"), 1, "--exclude: 'blocs.1' matches nothing"),
        ((NET, "--recipe", "typo.yaml"), 1, "rules[0].exclude: 'blocs.1' matches nothing"),
        ((NET, "--recipe", "paper", "--recipe", "typo.yaml"), 1, "rules[1] is the first of typo.yaml"),
        ((NET, "--after", "blocks.1.conv2"), 1, "write path: blocks.1.conv2, after: output in a rule of a recipe file"),
        ((NET, "--recipe", "mobile", "--exclude", "conv2"), 1, "Did you mean '*.conv2'?"),
        ((NET, "--after", "block.conv9"), 1, "conv9"),
        ((NET, "--after", "block.ouput"), 1, "did you mean 'output'?"),
        ((NET, "--before", "block.residul"), 1, "did you mean 'residual'?"),
        ((NET, "--after", "block", "--input-size", "32x32"), 2, "channels x height x width: 3x32x32"),
        ((NET, "--after", "block", "--input-size", "3x32"), 2, "channels x height x width: 3x32x32"),
        (("nets.py:Broken", "--after", "block"), 2, "the user's own mistake"),
        (("nets.py:make_wrapped", "--after", "block"), 2, "DataParallel"),
        (("nets.py:make_compiled", "--after", "block"), 2, "torch.compile"),
        (("nets.py:make_scripted", "--after", "block"), 2, "Script"),
        (("nets.py:make_meta", "--after", "block"), 2, "meta"),
        (("nets.py:Nett", "--after", "block"), 2, "nets.py has no 'Nett'. Did you mean Net"),
        (("sites", "nets.py:None_"), 2, "None_"),
        (("explain", "nets.py:Broken", "--after", "block"), 2, "the user's own mistake"),
    ],
)
def test_mistakes_are_one_message_in_json_too(arguments, exit_code, sentence, run, folder):
    (folder / "typo.yaml").write_text("rules: [{block: Block, after: conv1, exclude: blocs.1}]")
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    data = json.loads(result.stdout)
    assert list(data) == ["error"]
    assert sentence in data["error"]
    assert data["error"] in result.stderr


@pytest.mark.parametrize("options", [("--dry-run",), ()])
def test_a_recipe_of_optional_rules_that_takes_nothing_says_why(options, run, folder):
    (folder / "mine.yaml").write_text("rules: [{block: C2f, after: output, optional: true}]")
    result = run(NET, "--recipe", "mine.yaml", *SMALL, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: mine matched no site in this model")
    assert run("explain", NET, "--recipe", "mine.yaml", *SMALL).exit_code == 1


MODEL_FILE = """
nc: 3
backbone: [[-1, 1, Conv, [16, 3, 2]], [-1, 1, C2f, [32, True]]]
head: [[[1], 1, Detect, [nc]]]
"""


@pytest.mark.parametrize("name", ["mine.yaml", "ultralytics:mine.yml"])
def test_a_section_of_a_model_file_needs_no_recipe(name, run, folder):
    pytest.importorskip("ultralytics")
    file = folder / name.removeprefix("ultralytics:")
    file.write_text(f"{MODEL_FILE}simam: after c2f")
    assert "0 sites planned with e_lambda 0.0001, 1 already there" in run(name, "--dry-run").stdout
    assert "[SimAM]" in run("explain", name).stdout
    file.write_text(f"{MODEL_FILE}simam: yolo-nek")
    assert "did you mean 'yolo-neck'?" in run(name).stderr
    file.write_text(MODEL_FILE)
    assert "no site given" in run(name).stderr


def test_an_integer_lambda_warns_in_one_line(run):
    with pytest.warns(UserWarning, match="probably a channel count"):
        run(NET, "--after", "block", "--e-lambda", "64", "--dry-run", *SMALL)


def test_a_failed_verification_is_1_and_saves_nothing(run, folder, monkeypatch):
    failed = Verification((Check("bypass", False, "off by 0.5"),))
    monkeypatch.setattr("simam_inject.api.check_model", lambda *_args, **_more: failed)
    result = run(NET, "--after", "block", *SMALL, "--output", "x.safetensors")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search("verification failed.*restored.*bypass: off by 0.5", result.stderr)
    assert not (folder / "x.safetensors").exists()


def test_the_strength_reaches_every_simam(run, built):
    result = run(NET, "--after", "block", *SMALL, "--strength", "0.25")
    assert result.exit_code == 0, result.stderr
    assert {site.strength for site in injected(built[0].model)} == {0.25}
    data = json.loads(run(NET, "--after", "block", *SMALL, "--strength", "0.25", "--json").stdout)
    assert {site["strength"] for site in data["insertions"]} == {0.25}
    assert "nets.py:Net, after block, strength 0.25 (" in result.stdout
    assert "strength=0.25" in result.stdout


def test_sites_of_a_file_get_the_strength_that_is_given(run, built):
    run(NET, "--after", "block", *SMALL, "--strength", "0.25", "--output", "x.safetensors")
    for options, expected in (((), 0.25), (("--strength", "1"), 1.0)):
        assert run(NET, "--weights", "x.safetensors", *SMALL, *options).exit_code == 0
        assert {site.strength for site in injected(built[-1].model)} == {expected}


def test_seed_and_number_of_classes_make_the_model(run, folder, built):
    for seed in ("1", "2", "1"):
        run("nets.py:make_wide", "--after", "block", *SMALL, "--dry-run", "--seed", seed, "--num-classes", "7")
    one, other, again = [one.model.head.weight for one in built]
    assert one.shape == (7, 8)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_long_plan_is_grouped_by_kind_of_block(run):
    place = ("timm:resnet26", "--recipe", "every-conv", "--input-size", "3x64x64", "--dry-run")
    lines = [line.split() for line in run(*place).stdout.splitlines()]
    assert ["Bottleneck.conv2", "after", "8", "64x16x16", "..", "512x2x2", "4..32", "output"] in lines
    assert ["29", "sites", "by", "kind;", "--verbose", "shows", "each"] in lines
    assert len(run(*place, "--verbose").stdout.splitlines()) > len(lines) + 10
