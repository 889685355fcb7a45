"""`simam-inject MODEL --after X`: what is reported, what is returned, what a mistake says."""

import json

import pytest

from simam_inject import injected
from simam_inject.persist import load
from simam_inject.planning.records import Check, Verification
from simam_inject.zoo import build

NET = "nets.py:Net"
SMALL = ("--input-size", "3x32x32")


def test_report_of_a_verified_injection(run):
    result = run(NET, "--after", "block", *SMALL)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["blocks.0", "after", "8x16x16", "2", "0.0001", "inserted"] in lines
    assert ["blocks.1", "after", "8x16x16", "2", "0.0001", "inserted"] in lines
    assert "2 sites inserted, 0 skipped; parameters +0; 32.8 kB moved per image" in result.stdout
    assert "\nverified: " in result.stdout
    assert "inject(model, 'after block')" in result.stdout
    assert "weights as Net makes them" in result.stdout


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


def test_e_lambda_overrides_every_rule(run, folder):
    (folder / "own.yaml").write_text("rules: [{block: Block, after: conv1, e_lambda: 0.2}]")
    data = json.loads(run(NET, "--recipe", "own.yaml", "--e-lambda", "0.5", *SMALL, "--json").stdout)
    assert {site["e_lambda"] for site in data["insertions"]} == {0.5}


def test_json_is_all_there_is_on_stdout(run):
    result = run("nets.py:make_noisy", "--after", "block", *SMALL, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert result.stderr == "a factory that talks\n"
    assert data["model"] == "nets.py:make_noisy"
    assert data["source"] == "nets.py"
    assert [site["path"] for site in data["insertions"]] == ["blocks.0", "blocks.1"]
    assert data["totals"] == {"sites": 2, "parameters": 0, "bytes_per_image": 2 * 2 * 4 * 8 * 16 * 16}
    assert data["verification"]["ok"] is True
    assert data["output"] is None


def test_dry_run_touches_nothing(run):
    result = run(NET, "--after", "block", *SMALL, "--dry-run")
    assert result.exit_code == 0
    assert "2 sites planned" in result.stdout
    assert "verified" not in result.stdout
    assert "the same command without --dry-run" in result.stdout


def test_near_misses_only_with_why(run):
    place = ("--after", "block", "--exclude", "blocks.1", *SMALL, "--dry-run")
    short = run(NET, *place).stdout
    assert "near miss:" not in short
    assert "1 near miss (--why shows it)" in short
    assert "near miss: excluded by blocks.1" in run(NET, *place, "--why").stdout


def test_a_map_of_one_pixel_is_skipped_with_its_reason(run, folder):
    (folder / "own.yaml").write_text("rules: [{path: '*', after: {op: conv2d}}]")
    result = run(NET, "--recipe", "own.yaml", *SMALL, "--dry-run")
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == ["pool.1"]]
    assert "skipped: " in line
    assert "1x1" in line


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (("resnet5O", "--after", "block"), 2, "error: no library has a model 'resnet5O'. Did you mean resnet50"),
        ((NET, "--after", "blokc"), 1, "Did you mean Block"),
        ((NET, "--after", "block", "--exclude", "blocs.1"), 1, "error: --exclude: 'blocs.1' matches nothing in this"),
        ((NET, "--recipe", "typo.yaml"), 1, "error: rules[0].exclude: 'blocs.1' matches nothing in this model."),
        ((NET, "--recipe", "mobile", "--exclude", "conv2"), 1, "Did you mean '*.conv2'?"),
        ((NET, "--after", "block.conv9"), 1, "blocks.0: has no child conv9; it has conv1, bn1,"),
        ((NET,), 2, "error: nothing says where SimAM goes: give --after BLOCK"),
        (
            (NET, "--after", "after block"),
            2,
            "error: selector: found 'after after block'; leave out the second 'after'",
        ),
        (
            (NET, "--after", "block", "--input-size", "32x32"),
            2,
            "--input-size 32x32 is channels x length; an image is channels x height x width: 3x32x32",
        ),
        ((NET, "--recipe", "papre"), 2, "did you mean 'paper'"),
        ((NET, "--recipe", "nope.yaml"), 2, "error: recipe: cannot read nope.yaml: No such file or directory"),
        ((NET, "--recipe", "list.yaml"), 2, "list"),
        ((NET, "--after", "block", "--e-lambda", "-1"), 2, "error: e_lambda: found -1; allowed is"),
        ((NET, "--after", "block", "--e-lambda", "nan"), 2, "error: e_lambda: found nan; allowed is"),
        (("nets.py:Broken", "--after", "block"), 2, "the user's own mistake"),
        (("nets.py:make_wrapped", "--after", "block"), 2, "DataParallel"),
        (("nets.py:make_compiled", "--after", "block"), 2, "torch.compile"),
        (("nets.py:make_scripted", "--after", "block"), 2, "Script"),
        (("nets.py:make_meta", "--after", "block"), 2, "meta"),
        (("nets.py:Nett", "--after", "block"), 2, "error: nets.py:Nett: nets.py has no 'Nett'. Did you mean Net"),
    ],
)
def test_mistakes_are_one_message(arguments, exit_code, sentence, run, folder):
    (folder / "list.yaml").write_text("- block: Block\n")
    (folder / "typo.yaml").write_text("rules: [{block: Block, after: conv1, exclude: blocs.1}]")
    result = run(*arguments)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("options", [("--dry-run",), ("--json",), ()])
def test_a_recipe_of_optional_rules_that_takes_nothing_says_why(options, run):
    result = run(NET, "--recipe", "paper", *SMALL, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: paper takes no site in this model: all its rules are optional")


def test_explain_of_a_recipe_that_takes_nothing_says_why(run):
    result = run("explain", NET, "--recipe", "paper", *SMALL)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: paper takes no site in this model")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((NET, "--after", "block", "--input-size", "32"), "channels x height x width"),
        ((NET, "--after", "block", "--input-size", "3x0x32"), "channels x height x width"),
        ((NET, "--after", "block", "--e-lambda", "small"), "write a number"),
        ((NET, "--after", "block", "--output", "x.pkl"), "must end in .safetensors"),
        ((NET, "--after", "block", "--output", "nowhere/x.safetensors"), "there is no folder 'nowhere'"),
        ((NET, "--after", "block", "--output", "x.safetensors", "--dry-run"), "a dry run makes nothing"),
        ((NET, "--aftre", "block"), "No such option"),
        ((NET, "-after", "block"), "No such option: -after (did you mean --after?)"),
        (("site", NET), "No such command: site (did you mean sites?)"),
    ],
)
def test_bad_usage_is_2(arguments, sentence, run):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert sentence in " ".join(result.stderr.replace("│", " ").split())


def test_an_integer_lambda_warns_in_one_line(run):
    with pytest.warns(UserWarning, match="probably a channel count"):
        run(NET, "--after", "block", "--e-lambda", "64", "--dry-run", *SMALL)


def test_a_failed_verification_is_1_and_saves_nothing(run, folder, monkeypatch):
    failed = Verification((Check("bypass", False, "off by 0.5"),))
    monkeypatch.setattr("simam_inject.verify", lambda model, example_inputs=None: failed)
    result = run(NET, "--after", "block", *SMALL, "--output", "x.safetensors")
    assert result.exit_code == 1
    assert "failed: bypass: off by 0.5" in result.stdout
    assert "do not train this model" in result.stdout
    assert not (folder / "x.safetensors").exists()


def test_output_is_what_load_puts_into_a_fresh_model(run, folder):
    result = run(NET, "--after", "block", *SMALL, "--output", "x.safetensors")
    assert result.exit_code == 0
    assert "load('x.safetensors', model)" in result.stdout
    fresh = load(folder / "x.safetensors", build(NET).model)
    assert [site.path for site in injected(fresh)] == ["blocks.0", "blocks.1"]


def test_output_is_told_in_json(run, folder):
    data = json.loads(run(NET, "--after", "block", *SMALL, "--json", "--output", "x.safetensors").stdout)
    assert data["output"] == "x.safetensors"
    assert (folder / "x.safetensors").is_file()


def test_a_model_that_has_its_sites_already_is_verified_and_told(run, folder):
    run(NET, "--after", "block", *SMALL, "--output", "x.safetensors")
    source = (
        "from nets import Net\nfrom simam_inject.persist import load\n\ndef make(): return load('x.safetensors', Net())"
    )
    (folder / "again.py").write_text(source)
    result = run("again.py:make", "--after", "block", *SMALL)
    assert result.exit_code == 0
    assert "0 sites inserted, 2 already there, 0 skipped" in result.stdout
    assert "\nverified: " in result.stdout
