"""`sites`, `recipes`, `--help`, `--version`, and how a first word finds its command."""

import json
import os
import re
import subprocess
import sys

import pytest

from simam_inject.recipe import load_recipe, shipped_recipes


def test_sites_shows_what_can_be_named(run):
    result = run("sites", "nets.py:Net", "--input-size", "3x32x32")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["Block", "block", "2", "8x16x16", "2"] in lines
    assert ["conv1", "conv2d", "3x3", "2", "8x16x16", "2"] in lines
    assert "--after block.conv2" in result.stdout
    assert "--before block.residual" in result.stdout


def test_sites_as_json(run):
    data = json.loads(run("sites", "nets.py:make_noisy", "--input-size", "3x32x32", "--json").stdout)
    assert data["input_shapes"] == [[1, 3, 32, 32]]
    assert data["classes"][0]["name"] == "Block"
    assert data["classes"][0]["paths"] == ["blocks.0", "blocks.1"]


def test_what_sites_suggests_can_be_injected(run):
    suggested = [
        line.split()
        for line in run("sites", "nets.py:Net").stdout.splitlines()
        if line.strip().startswith(("--after", "--before"))
    ]
    assert len(suggested) == 3
    for place in suggested:
        assert run("nets.py:Net", *place, "--input-size", "3x32x32", "--dry-run").exit_code == 0


def test_sites_of_an_unknown_model(run):
    result = run("sites", "resnet5O")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no library has a model 'resnet5O'. Did you mean resnet50")


def test_recipes_lists_every_shipped_one(run):
    result = run("recipes")
    assert result.exit_code == 0
    assert [name for name in shipped_recipes() if name not in result.stdout] == []


def test_a_shown_recipe_is_a_recipe(run, folder):
    result = run("recipes", "show", "paper")
    assert result.exit_code == 0
    (folder / "mine.yaml").write_text(result.stdout)
    assert run("resnet18", "--recipe", "mine.yaml", "--dry-run", "--input-size", "3x64x64").exit_code == 0


def test_an_unknown_recipe_names_the_nearest(run):
    result = run("recipes", "show", "papr")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'paper'" in result.stderr


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_is_that_of_the_main_job_and_lists_the_others(arguments, run):
    result = run(*arguments)
    text = result.stdout + result.stderr
    assert result.exit_code == (0 if arguments else 2)
    for word in ("MODEL", "--after", "--recipe", "--dry-run", "--version", "sites", "recipes"):
        assert word in text
    assert "COMMAND" not in text


def test_options_may_come_before_the_model(run):
    result = run("--after", "block", "--dry-run", "--input-size", "3x32x32", "nets.py:Net")
    assert result.exit_code == 0
    assert "2 sites planned" in result.stdout


def test_help_of_a_model_is_the_main_jobs(run):
    result = run("nets.py:Net", "--help")
    assert result.exit_code == 0
    assert "--after" in result.stdout


def test_version_is_one_line(run):
    result = run("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+( \(from source, not installed\))?", result.stdout.strip())


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


def test_help_imports_nothing_heavy():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['simam-inject', '--help']\n"
        "try: runpy.run_module('simam_inject', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join(name for name in ('numpy', 'pydantic', 'timm', 'torch', 'yaml') if name in sys.modules))\n"
    )
    result = python("-c", code)
    assert result.stderr.split() == []
    assert "--after" in result.stdout


def test_the_program_in_its_own_process_prints_json_only(tmp_path):
    result = python("-m", "simam_inject", "yolov8n", "--after", "c2f", "--dry-run", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["insertions"]) == 8


MODEL_FILE = """
nc: 80
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, SimAM, [1024]]
  - [-1, 3, C2f, [128, True]]
head:
  - [-1, 1, Detect, [nc]]
"""


def test_a_model_file_with_simam_rows_becomes_a_recipe(run, folder):
    (folder / "forked.yaml").write_text(MODEL_FILE)
    result = run("recipes", "from-yaml", str(folder / "forked.yaml"))
    assert result.exit_code == 0, result.stderr
    assert "path: model.0" in result.stdout
    assert "note: row 1 (SimAM): 1024 is no lambda" in result.stderr
    written = folder / "recipe.yaml"
    assert run("recipes", "from-yaml", str(folder / "forked.yaml"), "--output", str(written)).exit_code == 0
    assert [str(glob) for glob in load_recipe(written).rules[0].path] == ["model.0"]


def test_a_model_file_that_is_none_is_one_message(run, folder):
    (folder / "list.yaml").write_text("- 1\n")
    result = run("recipes", "from-yaml", str(folder / "list.yaml"))
    assert result.exit_code == 2
    assert "error:" in result.stderr
    assert "Traceback" not in result.stderr
