"""`sites`, `explain`, `report`, `recipes`, `--help`, `--version`, and how a first word finds its command."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import get_args

import pytest

from simam_inject.recipe import load_recipe, shipped_recipes

SMALL = ("--input-size", "3x32x32")


def test_sites_shows_what_can_be_named(run):
    result = run("sites", "nets.py:Net", *SMALL)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["Block", "block", "2", "8x16x16", "2"] in lines
    assert ["conv1", "conv2d", "3x3", "2", "8x16x16", "2"] in lines
    assert "--after block.conv1" in result.stdout
    assert "--before block.residual" in result.stdout


def test_sites_as_json(run):
    data = json.loads(run("sites", "nets.py:make_noisy", *SMALL, "--json").stdout)
    assert data["input_shapes"] == [[1, 3, 32, 32]]
    assert data["classes"][0]["name"] == "Block"
    assert data["classes"][0]["paths"] == ["blocks.0", "blocks.1"]


def test_what_sites_suggests_can_be_injected(run):
    suggested = [
        line.split()
        for line in run("sites", "nets.py:Net", *SMALL).stdout.splitlines()
        if line.strip().startswith(("--after", "--before"))
    ]
    assert len(suggested) == 3
    for place in suggested:
        assert run("nets.py:Net", *place, *SMALL, "--dry-run").exit_code == 0


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize(
    "arguments",
    [
        ("timm:convnext_atto", "--after", "convnextblock.conv_dw", "--input-size", "3x64x64", "--dry-run"),
        ("timm:densenet121", "--recipe", "every-conv", "--input-size", "3x64x64", "--dry-run"),
        ("sites", "timm:convnext_atto", "--input-size", "3x64x64"),
        ("sites", "timm:resnet26", "--input-size", "3x64x64"),
        ("recipes",),
    ],
)
def test_tables_are_whole(arguments, width, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(*arguments).stdout.splitlines()
    assert all(len(line) <= width for line in lines if not line.startswith("  "))
    assert "…" not in "".join(lines)
    header = next((line for line in lines if "CxHxW" in line), "")
    assert not header or header.split()[-1] in ("reduction", "edit")


def test_a_narrow_terminal_cuts_no_column(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = run("sites", "nets.py:Net", *SMALL).stdout.splitlines()
    header = next(number for number, line in enumerate(lines) if "CxHxW" in line)
    assert lines[header].split()[-3:] == ["count", "CxHxW", "reduction"]
    assert lines[header + 2].split()[-3:] == ["2", "8x16x16", "2"]


def test_explain_draws_and_changes_nothing(run):
    result = run("explain", "nets.py:Net", "--after", "block.conv1", *SMALL)
    assert result.exit_code == 0
    assert "  conv1 > [SimAM] > bn1 > relu > conv2 > (+)" in result.stdout
    data = json.loads(run("explain", "nets.py:Net", "--after", "block.conv1", *SMALL, "--json").stdout)
    assert data["blocks"][0]["paths"] == ["blocks.0", "blocks.1"]


class _Page(HTMLParser):
    """Rows of tables, and every address that the page would load."""

    def __init__(self):
        super().__init__()
        self.rows, self.addresses, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "br", "rect"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.rows[-1].append(data)


def test_report_is_one_whole_page(run, folder):
    result = run("report", "nets.py:Net", "--after", "block", *SMALL, "--strength", "0.5", "--html", "page.html")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == "wrote page.html: 2 sites, verified: 7 checks"
    text = (folder / "page.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.addresses == []
    row = ["blocks.1", "after", "8x16x16", "2", "0.0001", "output", "NCHW, measured", "blocks.1.simam"]
    assert row in page.rows
    assert text.count('class="simam"') == 2
    assert "<title>blocks.0: Block, 8x16x16\nSimAM after blocks.0</title>" in text
    assert "after: output" in text
    assert "2 sites (blocks.0 .. blocks.1): strength 0.5" in text
    assert sum(row[:1] == ["ok"] for row in page.rows) == 7


@pytest.mark.parametrize(
    ("page", "fact"), [("full.html", "No space left on device"), ("nowhere/page.html", "'nowhere'")]
)
def test_a_report_that_cannot_be_written_is_one_message(page, fact, run, folder):
    (folder / "full.html").symlink_to("/dev/full")
    result = run("report", "nets.py:Net", "--after", "block", *SMALL, "--html", page)
    assert result.exit_code == 2
    assert fact in result.stderr
    assert "Traceback" not in result.stderr


def test_recipes_lists_every_shipped_one(run):
    result = run("recipes")
    assert result.exit_code == 0
    assert [name for name in shipped_recipes() if name not in result.stdout] == []
    assert [recipe["name"] for recipe in json.loads(run("recipes", "--json").stdout)["recipes"]] == [*shipped_recipes()]


def test_a_shown_recipe_is_a_recipe(run, folder):
    result = run("recipes", "show", "paper")
    assert result.exit_code == 0
    (folder / "mine.yaml").write_text(result.stdout)
    assert load_recipe(folder / "mine.yaml").rules == load_recipe("paper").rules


def test_an_unknown_recipe_names_the_nearest(run):
    result = run("recipes", "show", "papr")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'paper'" in result.stderr


@pytest.mark.parametrize("words", [["--help"], ["nets.py:Net", "--help"]])
def test_help_is_that_of_the_main_job_and_lists_the_others(words, run):
    result = run(*words)
    assert result.exit_code == 0
    for word in ("MODEL", "--after", "--recipe", "--dry-run", "--version", "--install-completion", "sites", "recipes"):
        assert word in result.stdout
    assert "COMMAND" not in result.stdout


def test_without_arguments_the_first_commands_are_shown(run):
    result = run()
    assert result.exit_code == 0
    commands = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("  simam-inject ")]
    assert commands == ["sites", "resnet50", "resnet50", "recipes"]


def test_options_may_come_before_the_model(run):
    result = run("--after", "block", "--dry-run", *SMALL, "nets.py:Net")
    assert result.exit_code == 0
    assert "2 sites planned" in result.stdout


def test_the_main_option_before_the_model_is_no_misspelled_command(run, folder):
    assert run("--recipe", "paper", "nets.py:Net", "--dry-run", *SMALL).exit_code == 0
    (folder / "compare.pt").write_bytes(b"")
    assert "compare.pt" in run("compare.pt").stderr
    assert "Did you mean 'compare'" in run("compre", "x").stderr
    assert run("--version", "sites").exit_code == 0


@pytest.mark.parametrize("words", [("recipes",), ("recipes", "show", "paper"), ("sites", "nets.py:Net", *SMALL)])
def test_flags_may_come_before_the_command(words, run):
    result = run("--json", *words)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(run(*words, "--json").stdout)


def test_version_is_one_line(run):
    result = run("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+( \(from source, not installed\))?", result.stdout.strip())


WRONG = """
import sys
from typer.testing import CliRunner
from simam_inject.cli.app import app

def run(*arguments):
    result = CliRunner().invoke(app, arguments, prog_name="simam-inject")
    print("==", result.exit_code, " ".join((result.stdout + result.stderr).replace("│", " ").split()))

for line in sys.stdin.read().splitlines():
    run(*line.split())
print("heavy:", [name for name in ("torch", "numpy", "timm", "ultralytics") if name in sys.modules])
"""
MISTAKES = [
    ("resnet50", "no site given: use --after BLOCK"),
    ("yolov8n.yaml", "no site given: use --after BLOCK"),
    ("resnet50 --recipe papr", "did you mean 'paper'"),
    ("resnet50 --recipe nope.yaml", "cannot read nope.yaml"),
    ("resnet50 --recipe list.yaml", "list"),
    ("resnet50 --after block --e-lambda -1", "e_lambda"),
    ("resnet50 --after block --e-lambda nan", "e_lambda"),
    ("resnet50 --after block --e-lambda small", "write a number"),
    ("resnet50 --after block --seed 99999999999999999999", "4294967295"),
    ("resnet50 --after block --strength 2", "less than or equal to 1"),
    ("resnet50 --after block --input-size 32", "channels x height x width"),
    ("resnet50 --after block --input-size 3x0x32", "channels x height x width"),
    ("resnet50 --after block --input-size 3x32x9999999999999999999999", "channels x height x width"),
    ("resnet50 --after block --weights none.pth", "'none.pth' does not exist"),
    ("resnet50 --after block --weights list.yaml --pretrained", "give one of them"),
    ("compare resnet50 --recipe paper --data . --weights list.yaml --pretrained", "give one of them"),
    ("resnet50 --after block --calibrate none", "'none' does not exist"),
    ("resnet50 --after block --calibrate list.yaml", "'list.yaml' is a file"),
    ("report resnet50 --after block --html page.txt", "must end in .html"),
    ("compare report study --html page.txt", "must end in .html"),
    ("resnet50 --aftre block", "Usage: simam-inject [OPTIONS] {MODEL}"),
    ("resnet50 --html x.html", "No such option: --html (Possible options: simam-inject report --html)"),
    ("compare resnet50 --html x", "No such option: --html (Possible options: simam-inject compare report --html)"),
    ("compare resnet50", "Usage: simam-inject compare [OPTIONS] {MODEL}"),
    ("resnet50 --after block --output x.pkl", "must end in .safetensors"),
    ("resnet50 --after block --output nowhere/x.safetensors", "no such folder: 'nowhere'"),
    ("resnet50 --after block --output x.safetensors --dry-run", "--dry-run cannot be combined with --output"),
    ("resnet50 --after block --output x.pt", ".pt is the checkpoint format of ultralytics"),
    ("resnet50 --after block --output x.onnx --strength 0", "--strength 0 leaves nothing of SimAM"),
    ("resnet50 --after block --output x.safetensors --dynamic", "--output x.onnx or x.pt2"),
    ("resnet50 --aftre block", "No such option"),
    ("resnet50 -after block", "No such option: -a"),
    ("site resnet50", "Did you mean 'sites'?"),
    ("Check x.pt", "Did you mean 'check'?"),
    ("plan resnet50", "'plan' is neither a command nor a model. simam-inject MODEL --recipe NAME"),
    ("inject resnet50 --recipe paper", "'inject' is neither a command nor a model"),
    ("resnet50 paper", "a recipe is an option: simam-inject resnet50 --recipe paper"),
    ("resnet50 sites", "the command comes before the model: simam-inject sites resnet50"),
    ("resnet50 bottleneck --dry-run", "takes no further word, but found 'bottleneck'; use --recipe NAME or --after"),
    ("compare resnet50 --recipe paper --data . all", "simam-inject compare resnet50 takes no further word"),
    ("recipes paper", "No such command 'paper'"),
    ("bench resnet50 --after block --against foo", "'foo'; choose from se, eca, cbam, gc"),
    ("bench resnet50 --after block --dtype fp8", "'fp32', 'bf16', 'fp16'"),
    ("bench resnet50 --after block --device tpu", "cpu, cuda, cuda:N"),
    ("report resnet50 --after block --html .", "'.' is a folder"),
    ("explain resnet50 --after block --strength 0.5", "No such option: --strength"),
    ("weights.pth --after block", "add --weights weights.pth"),
    ("weights.pt --after block", "add --weights weights.pt"),
    ("sites weights.safetensors", "add --weights weights.safetensors"),
    ("sites net.onnx", "is an exported graph"),
    ("sites nets.py", "Net, Deep, Broken, make_wrapped,"),
    ("nets.py --after block", "name one of them, as in nets.py:make_noisy"),
    ("sites none.py", "none.py"),
    ("check none.pt", "no such file: 'none.pt'"),
    ("check none.safetensors", "no such file: 'none.safetensors'"),
    ("compare resnet50 --recipe paper --data none", "no such folder: none"),
]


def python(*arguments: str, more=None, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "COLUMNS": "200",
        **(more or {}),
    }
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


def test_bad_usage_is_2_before_anything_heavy_is_imported(folder):
    import torch

    (folder / "list.yaml").write_text("- block: Block\n")
    torch.save({"a": torch.zeros(1)}, folder / "weights.pt")
    result = python("-c", WRONG, input="\n".join(line for line, _ in MISTAKES), cwd=folder)
    *answers, heavy = result.stdout.splitlines()
    assert result.stderr == ""
    for answer, (line, sentence) in zip(answers, MISTAKES, strict=True):
        assert answer.startswith("== 2 "), (line, answer)
        assert sentence in answer, (line, answer)
        assert "Traceback" not in answer
    assert heavy == "heavy: []"


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


def test_recipes_are_completed():
    code = "from simam_inject.cli.app import main; main()"
    line = {"COMP_WORDS": "simam-inject resnet50 --recipe yolo-s", "COMP_CWORD": "3"}
    found = python("-c", code, more={"_SIMAM_INJECT_COMPLETE": "complete_bash", **line})
    assert found.stdout.split() == ["yolo-sppf"], found.stderr


def test_names_that_options_repeat_are_those_of_the_modules():
    from simam_inject.bench.run import DTYPES
    from simam_inject.cli import options
    from simam_inject.export.formats import FORMS
    from simam_inject.zoo.names import EXPORTS

    assert tuple(DTYPES) == get_args(options.Dtype)
    assert tuple(FORMS) == EXPORTS


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
    assert "note: row 1 (SimAM): [1024]" in result.stderr
    written = folder / "recipe.yaml"
    assert run("recipes", "from-yaml", str(folder / "forked.yaml"), "--output", str(written)).exit_code == 0
    assert load_recipe(written).to_dict()["rules"][0]["path"] == "model.0"


def test_without_ultralytics_a_model_file_is_one_message(run, folder, monkeypatch):
    monkeypatch.setattr("simam_inject.errors.find_spec", lambda name: None)
    (folder / "forked.yaml").write_text(MODEL_FILE)
    result = run("recipes", "from-yaml", str(folder / "forked.yaml"))
    assert (result.exit_code, "simam_inject[ultralytics]" in result.stderr) == (2, True)


def test_a_model_file_that_is_none_is_one_message(run, folder):
    (folder / "list.yaml").write_text("- 1\n")
    result = run("recipes", "from-yaml", str(folder / "list.yaml"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error:")


def test_letters_that_the_output_lacks_are_escaped(folder):
    (folder / "né.py").write_text((folder / "nets.py").read_text())
    code = "from simam_inject.cli.app import main; main()"
    arguments = ("-c", code, "né.py:Net", "--after", "block", *SMALL)
    result = python(*arguments, cwd=folder, more={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(r"n\xe9.py:Net, after block")
