"""The benchmarks: they refuse wrong and noisy results, and their tables hold what was measured."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import additive, everything, measuring, micro, operator_table, options, resnet, train, yolo
from benchmarks.cases import Case
from benchmarks.popular import PopularSimAM
from benchmarks.truth import WrongResultError, pass_gate
from simam_inject import SimAM
from simam_inject.bench.measuring import Quartiles

ROOT = Path(__file__).parents[2]
SMALL = [Case((2, 3, 6, 6), layout, dtype, False) for layout in ("nchw", "channels last") for dtype in (torch.float32,)]


@pytest.fixture
def _few_small_cases(monkeypatch):
    monkeypatch.setattr(operator_table, "cases", lambda *_args, **_options: SMALL)
    monkeypatch.setattr(measuring, "ROUNDS", {"cpu": 3})
    monkeypatch.setattr(measuring, "SAMPLE_SECONDS", {"cpu": 1e-5})


@pytest.mark.usefixtures("_few_small_cases")
@pytest.mark.parametrize("command", [micro, train])
def test_a_table_has_a_row_for_each_map_and_says_what_made_it(command, tmp_path, capsys):
    files = {"--json": tmp_path / "table.json", "--markdown": tmp_path / "table.md"}
    assert command.main([str(word) for pair in files.items() for word in pair]) == 0
    assert files["--markdown"].read_text() == capsys.readouterr().out.split("\n", 1)[1].removesuffix("\n")
    figures = json.loads(files["--json"].read_text())
    assert [row["case"] for row in figures["rows"]] == ["2x3x6x6 nchw fp32", "2x3x6x6 channels last fp32"]
    assert figures["environment"]["torch"] == torch.__version__
    for row in figures["rows"]:
        seconds = row["seconds"]
        assert set(seconds) == {"popular", "simam", "clone", "mixed"}
        assert all(0 < times["low"] <= times["median"] <= times["high"] for times in seconds.values())
        if command is train:
            assert row["kept"]["popular"] > 3.5 > 1.2 > row["kept"]["simam"]


def test_what_is_wrong_is_not_timed():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    pass_gate({"right": SimAM(), "also right": PopularSimAM()}, x, 1e-4)
    with pytest.raises(WrongResultError, match=r"other lambda on \(2, 3, 8, 8\), .*value.* limit 1e-06"):
        pass_gate({"other lambda": SimAM(0.1)}, x, 1e-4)
    with pytest.raises(WrongResultError, match=r"no gradient.*: gradient is"):
        pass_gate({"no gradient through the gate": lambda t: t * (SimAM()(t) / t).detach()}, x, 1e-4)
    with pytest.raises(WrongResultError):
        pass_gate({"overflowing": PopularSimAM()}, (torch.randn(1, 1, 80, 80) * 100).half(), 1e-4)


def test_what_is_noisy_is_not_quoted():
    assert measuring.shown(Quartiles(1.0, 0.95, 1.05)) == "1.00 [0.95, 1.05]"
    assert measuring.shown(Quartiles(1.0, 0.8, 1.2)) == "refused: noisy"
    assert measuring.shown(None) == ""


def test_attentions_sit_where_they_are_said_to():
    model = resnet.plain().eval()
    assert len(resnet.sites("conv2")) == 16
    assert resnet.sites("bn3")[:2] == ["layer1.0.bn3", "layer1.1.bn3"]
    twin = resnet.attended(model, resnet.sites("conv2"), nn.BatchNorm2d)
    assert twin.layer2[0].conv2[1].num_features == 128
    assert resnet.attended(model, resnet.sites("bn3"), nn.BatchNorm2d).layer2[0].bn3[1].num_features == 512
    assert isinstance(model.layer2[0].conv2, nn.Conv2d)
    for _, _, make in resnet.attentions():
        assert make(8)(torch.ones(1, 8, 4, 4)).shape == (1, 8, 4, 4)


@pytest.mark.usefixtures("_few_small_cases")
def test_what_attentions_add_is_timed_for_all_of_them(monkeypatch, capsys):
    monkeypatch.setattr(additive, "settings", lambda *_, **__: [resnet.Setting(2, 32, torch.channels_last)])
    monkeypatch.setattr(additive, "SAMPLE_SECONDS", 1e-5)
    assert additive.main([]) == 0
    head, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert head.count("|") == 3 + 2 + 2 * 4
    assert len(rows) == 3


def test_a_training_step_of_yolo_is_timed_against_rows_by_hand(tmp_path):
    pytest.importorskip("ultralytics")
    assert yolo.main(["--quick", "--json", str(tmp_path / "yolo.json")]) == 0
    rows = {row["variant"]: row for row in json.loads((tmp_path / "yolo.json").read_text())["rows"]}
    assert list(rows) == [yolo.PLAIN, yolo.INJECTED, yolo.ROWS, "popular form, rows by hand"]
    assert all(row["seconds"] > 0 for row in rows.values())
    kept = {name: row["kept"] - rows[yolo.PLAIN]["kept"] for name, row in rows.items()}
    assert 0 < kept[yolo.INJECTED] == kept[yolo.ROWS] < 0.3 * kept["popular form, rows by hand"]
    networks = dict(yolo.variants())
    for name in (yolo.INJECTED, yolo.ROWS):
        assert sum(isinstance(module, SimAM) for module in networks[name].modules()) == 8
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in networks[yolo.ROWS].modules())
    with pytest.raises(RuntimeError, match="the network by hand is another"):
        yolo._compare_losses(networks[yolo.PLAIN], networks[yolo.ROWS])


def test_one_call_does_all_and_reports_what_it_could_not(tmp_path, monkeypatch, capsys):
    names = [name for name, _ in everything.steps("cuda", tmp_path)]
    assert names == ["tests", "micro", "train", "yolo", "model"]
    assert "additive" in [name for name, _ in everything.steps("cpu", tmp_path)]
    good, bad, slow = ([sys.executable, "-c", code] for code in ("", "raise SystemExit(3)", "input()"))
    monkeypatch.setattr(everything, "steps", lambda *_: [("good", good), ("bad", bad)])
    assert everything.main(["--output", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == ["good: done", "bad: failed with status 3"]
    read, write = os.pipe()
    monkeypatch.setattr(everything.subprocess, "run", functools.partial(subprocess.run, stdin=read))
    assert everything.run(slow, time.monotonic() + 1.5) == "stopped: the time was up"
    assert everything.run(good, time.monotonic()) == "not started: the time was up"
    os.close(write)
    os.close(read)


def test_the_command_line(capsys):
    def run(*words):
        command = [sys.executable, "-m", "benchmarks", *words]
        return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)

    listing = run("--help")
    assert listing.returncode == 0
    assert all(word in listing.stdout for word in ("micro", "train", "additive", "model", "inject"))
    assert run("mikro").returncode == 2
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            options.parse("micro", None, ["--device", "cuda"])
        assert "no CUDA device here" in capsys.readouterr().err
