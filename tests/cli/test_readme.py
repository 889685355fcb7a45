"""What README says is run as it is written; the two commands that install are `.ci/run`'s."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("simam-inject ")]


@pytest.mark.usefixtures("project")
def test_its_python_runs(capsys):
    code = "\n".join(blocks("python"))
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 (our own text)
    assert len(names["injected"](names["model"])) == 16
    printed = capsys.readouterr().out
    assert "layer4.2" in printed
    assert "layer1.0.conv2" in printed


NEED_FILES = ("maps", "compare", "check", "show", "bench")
"""Commands that need images, data or minutes: their options are looked up in their help, as for checkpoints."""


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_its_commands_run(arguments, run, folder):
    nets = (folder / "nets.py").read_text()
    (folder / "nets.py").write_text(f"{nets}\ndef make_net():\n    return Net()\n")
    if (
        arguments[0] in NEED_FILES
        or arguments[0].endswith(".pt")
        or {"--weights", "--calibrate", "--dynamic"} & {*arguments}
    ):
        words = run(*arguments[: 1 if arguments[0] in NEED_FILES else 0], "--help").stdout.split()
        assert [word for word in arguments if word.startswith("--") and word not in words] == []
        return
    if arguments[0] not in ("sites", "recipes", "explain", "report") and "--dry-run" not in arguments:
        place = arguments.index("--output") if "--output" in arguments else len(arguments)
        arguments = [*arguments[:place], *arguments[place + 2 :], "--dry-run"]
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout


def test_the_two_commands_are_where_ci_looks_for_them():
    found = re.findall(r"^pip install .*$", README, flags=re.MULTILINE)
    assert len(found) == 2
    assert found[0] == "pip install . && simam-inject resnet50 --after bottleneck"
    assert found[1].startswith('pip install -e ".[test]" && pytest')


def test_coverage_is_what_the_table_says():
    table = (ROOT / "docs" / "coverage.md").read_text()
    (row,) = re.findall(r"^\| public-styles \|(.*)\|$", table, flags=re.MULTILINE)
    *_, in_scope, done, _numeric, failed = (cell.strip() for cell in row.split("|"))
    assert int(done) - int(failed) == int(in_scope)
    counts = re.findall(r"^\| (?!public)\S+ \| \d+ \|.*?(\d+) \| (\d+) of \d+ \| 0 \|$", table, flags=re.MULTILINE)
    models, in_full = (sum(map(int, column)) for column in zip(*counts, strict=True))
    words = " ".join(README.split())
    assert f"{in_scope} test networks" in words
    assert re.search(rf"{models:,} models of [^.]*, {in_full} of them in full", words)
