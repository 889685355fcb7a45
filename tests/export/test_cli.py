"""`--output net.onnx`: the file, its proof in the report, and exit code 1 for a file that lost a site."""

import json

import pytest
import torch
from typer.testing import CliRunner

from simam_inject import bypass
from simam_inject.cli.app import app

NET = "timm:test_resnet"
PLACE = ("--after", "basicblock", "--input-size", "3x64x64")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_an_exported_file_is_reported_with_its_proof(run, tmp_path):
    result = run(NET, *PLACE, "--output", "net.pt2")
    assert result.exit_code == 0, result.output
    assert "net.pt2 holds 3 sites; output " in result.stdout
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_an_exported_file_is_told_in_json(run, tmp_path):
    result = run(NET, *PLACE, "--output", "net.torchscript", "--json")
    assert json.loads(result.stdout)["output"] == "net.torchscript"
    assert (tmp_path / "net.torchscript").is_file()


def test_a_file_that_lost_its_sites_is_1_and_not_there(run, tmp_path, monkeypatch):
    from simam_inject.export import script

    original = script.write

    def write_without_attention(model, *arguments):
        with bypass(model):
            original(model, *arguments)

    monkeypatch.setattr(script, "write", write_without_attention)
    result = run(NET, *PLACE, "--output", "net.torchscript")
    assert result.exit_code == 1
    assert "lost 3 of 3 SimAM sites" in result.stderr
    assert list(tmp_path.iterdir()) == []
