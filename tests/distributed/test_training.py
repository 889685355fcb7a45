"""examples/train_classifier.py on images drawn here: it learns, logs, resumes to the bit, and runs under torchrun."""

import csv
import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from simam_inject import injected
from simam_inject.persist import load
from simam_inject.zoo import build
from tests.distributed.launching import ROOT, torchrun
from tests.stripes import draw_stripes

SCRIPT = ROOT / "examples" / "train_classifier.py"
MODEL = "timm:test_resnet"
RECIPE = "after basicblock"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, dice = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in {"train": 16, "val": 6}.items():
        draw_stripes(folder / part, count, 40, dice)
    return folder


def arguments(images, out, *more, epochs=2):
    return [
        MODEL,
        *("--data", str(images), "--out", str(out), "--recipe", RECIPE, "--epochs", str(epochs), "--size", "32"),
        *("--batch", "4", "--workers", "0", "--warmup", "0", "--rate", "0.5", "--ema", "0.5", *more),
    ]


@pytest.fixture(scope="module")
def trainer():
    spec = importlib.util.spec_from_file_location("train_classifier", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def train(trainer, *given):
    with trainer.joined() as process:
        trainer.run(trainer.parse_arguments(list(given)), process)


def log_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state_of(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def test_it_learns_logs_and_keeps_weights_with_their_recipe(trainer, images, tmp_path):
    train(trainer, *arguments(images, tmp_path, "--amp", epochs=6))
    rows = log_of(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert max(float(row["ema_top1"]) for row in rows) >= 0.75
    model = load(tmp_path / "best.safetensors", build(MODEL, num_classes=2).model)
    assert len(injected(model)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "last.pt", "best.safetensors"}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_resumed_run_is_the_same_run(workers, trainer, images, tmp_path, monkeypatch):
    train(trainer, *arguments(images, tmp_path / "whole", "--workers", workers))
    original = trainer.Trainer.train

    def stop_at_the_second(self, progress):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return original(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(trainer, *arguments(images, tmp_path / "parts", "--workers", workers))
    assert state_of(tmp_path / "parts")["epoch"] == 1
    train(trainer, *arguments(images, tmp_path / "parts", "--workers", workers, "--resume"))
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    for name in ("network", "ema"):
        assert all(torch.equal(tensor, parts[name][key]) for key, tensor in whole[name].items())
    strip = [{**row, "images_per_second": ""} for row in log_of(tmp_path / "whole")]
    assert strip == [{**row, "images_per_second": ""} for row in log_of(tmp_path / "parts")]


def test_another_recipe_does_not_resume(trainer, images, tmp_path):
    train(trainer, *arguments(images, tmp_path, "--steps", "1", epochs=1))
    changed = ["paper" if given == RECIPE else given for given in arguments(images, tmp_path, "--resume")]
    with pytest.raises(SystemExit, match=r"last\.pt has recipe 'after basicblock', this command 'paper'"):
        train(trainer, *changed)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere"], "no such folder: nowhere/train"),
        (["--batch", "64"], "32 training images are fewer than one batch of 64"),
    ],
)
def test_data_that_cannot_be_trained_on(trainer, images, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        train(trainer, *arguments(images, tmp_path, *more))


def test_the_same_command_under_torchrun_and_the_export_at_its_end(images, tmp_path):
    exported = tmp_path / "net.pt2"
    given = arguments(images, tmp_path / "run", "--steps", "2", "--export", str(exported), epochs=1)
    done = torchrun(SCRIPT, *given)
    assert done.stdout.count("2 SimAM sites") == 1
    assert "2 sites live" in done.stdout
    assert len(log_of(tmp_path / "run")) == 1
    program = torch.export.load(exported).module()
    model = load(tmp_path / "run" / "best.safetensors", build(MODEL, num_classes=2).model).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_one_process_of_its_own_with_compile(images, tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        *arguments(images, tmp_path, "--compile", "--amp", "--steps", "2", epochs=1),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(log_of(tmp_path)) == 1


@pytest.mark.long
def test_two_processes_learn(images, tmp_path):
    torchrun(SCRIPT, *arguments(images, tmp_path, epochs=6))
    rows = log_of(tmp_path)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert max(float(row["ema_top1"]) for row in rows) >= 0.75


def test_a_trained_network_starts_warm_and_resumes_in_the_middle_of_the_ramp(trainer, images, tmp_path, capsys):
    """Weights in, gains fitted, accuracies printed, strength raised over a fifth of 6 epochs of 8 steps."""
    plain = [word for word in arguments(images, tmp_path / "plain", epochs=6) if word not in ("--recipe", RECIPE)]
    train(trainer, *plain)
    weights = ("--weights", str(tmp_path / "plain" / "best.safetensors"), "--warm-start")
    capsys.readouterr()
    train(trainer, *arguments(images, tmp_path / "warm", *weights, epochs=10))
    words = capsys.readouterr().out
    assert re.search(r"gain +error before", words)
    accuracies = re.search(r"top1 without SimAM (\S+)  with SimAM (\S+)  with its gains (\S+)", words)
    best = max(float(row["ema_top1"]) for row in log_of(tmp_path / "plain"))
    assert float(accuracies[1]) == pytest.approx(best, abs=1e-6)
    whole = state_of(tmp_path / "warm")
    assert whole["ramp"] == {"steps": 16, "start": 0.0, "done": 16}
    assert all(gain > 1.05 for gain in whole["gains"])
    found = injected(load(tmp_path / "warm" / "best.safetensors", build(MODEL, num_classes=2).model))
    assert [site.gain for site in found] == whole["gains"]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(trainer, patch, epochs=1)
        with pytest.raises(KeyboardInterrupt):
            train(trainer, *arguments(images, tmp_path / "cut", *weights, epochs=10))
    assert state_of(tmp_path / "cut")["ramp"]["done"] == 8
    train(trainer, *arguments(images, tmp_path / "cut", *weights, "--resume", epochs=10))
    resumed = state_of(tmp_path / "cut")
    assert resumed["gains"] == whole["gains"]
    for name, tensor in whole["network"].items():
        assert torch.equal(tensor, resumed["network"][name]), name


def stop_after(trainer, patch, epochs):
    """The run is killed when the next epoch begins."""
    run_epoch = trainer.run_epoch

    def run(state, *more):
        if state.trainer.epoch == epochs:
            raise KeyboardInterrupt
        run_epoch(state, *more)

    patch.setattr(trainer, "run_epoch", run)
