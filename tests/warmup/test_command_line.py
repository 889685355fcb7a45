"""A trained classifier through the command line: weights in, calibrated, file out, loaded by another process."""

import importlib.util
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from simam_inject import calibrate, inject, injected
from simam_inject.cli.app import app
from simam_inject.cli.preparing import images_in
from simam_inject.zoo import build
from tests.stripes import draw_stripes

ROOT = Path(__file__).parents[2]
RECIPE = "after block.conv2"
CLASSES = ("lying", "noise", "standing")
NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
"""


def pixels_of(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network in `nets.py`, images in `photos`, and weights that were trained on them in `trained.pth`."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "nets.py").write_text(NETS)
    dice = np.random.default_rng(0)
    for part, count in {"train": 24, "val": 16}.items():
        draw_stripes(folder / "photos" / part, count, 24, dice, CLASSES, deviation=40)
    torch.manual_seed(0)
    network = build(f"{folder}/nets.py:Net", num_classes=3).model.train()
    files = images_in(folder / "photos" / "train", 1000)
    images = torch.stack([pixels_of(file) for file in files])
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for epoch in range(30):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - epoch / 30)
        for part in torch.randperm(len(images)).split(24):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[part]), labels[part]).backward()
            optimizer.step()
    torch.save(network.state_dict(), folder / "trained.pth")
    yield folder
    sys.modules.pop("nets", None)


@pytest.fixture(scope="module")
def report(folder):
    """What the command prints that writes `warm.safetensors`."""
    words = "nets.py:Net --weights trained.pth --input-size 3x24x24 --calibrate photos/train --output warm.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, [*words.split(), "--recipe", RECIPE], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_report_shows_gain_and_kept_signal_of_each_site(report):
    assert re.search(r"site +gain +error before +after +kept\n", report)
    rows = re.findall(r"(blocks\.\d\.conv2) +(1\.\d+) +\S+ +\S+ +(\d+\.\d)%", report)
    assert [path for path, _, _ in rows] == ["blocks.0.conv2", "blocks.1.conv2"], report
    assert all(float(gain) > 1.1 and float(kept) > 90 for _, gain, kept in rows)


def test_a_fresh_process_has_the_outputs_of_the_calibrated_network(folder, report):
    assert "warm.safetensors" in report
    network = build(f"{folder}/nets.py:Net").model.eval()
    network.load_state_dict(torch.load(folder / "trained.pth", weights_only=True))
    probe = torch.stack([pixels_of(file) for file in images_in(folder / "photos" / "val", 16)])
    plain = network(probe)
    inject(network, RECIPE, example_inputs=probe[:1], verify=False)
    cold = network(probe)
    files = images_in(folder / "photos" / "train", 1000)
    random.Random(0).shuffle(files)  # a folder of each class in turn would be batches of one class
    calibrate(network, torch.stack([pixels_of(file) for file in files]).split(16))
    torch.save(probe, folder / "probe.pth")
    code = """
import torch
from nets import Net
from simam_inject.persist import load
network = load("warm.safetensors", Net()).eval()
torch.save([network(torch.load("probe.pth")), network.blocks[0].conv2.simam.gain], "outputs.pth")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    found, gain = torch.load(folder / "outputs.pth", weights_only=True)
    expected = network(probe)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gain == pytest.approx(injected(network)[0].gain, rel=1e-5)
    assert (found - cold).abs().max() > 0.1
    assert (found - plain).norm() < 0.5 * (cold - plain).norm()


@pytest.mark.usefixtures("report")
@pytest.mark.filterwarnings("ignore:nothing to inject")
def test_the_example_prints_accuracies_before_and_after(folder, monkeypatch, capsys):
    """The weights as they were trained, and the file of the command, whose gains it fits anew."""
    spec = importlib.util.spec_from_file_location("train_classifier", ROOT / "examples" / "train_classifier.py")
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)
    spec.loader.exec_module(example)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(example, "IMAGENET", ([0.0] * 3, [1.0] * 3))  # the network takes pixels from 0 to 1
    words = ["nets.py:Net", "--recipe", RECIPE, "--warm-start"]
    words += ["--data", "photos", "--epochs", "0", "--size", "24", "--batch", "8", "--workers", "0"]
    for file in ("trained.pth", "warm.safetensors"):
        with example.joined() as process:
            example.run(example.parse_arguments([*words, "--weights", file]), process)
        printed = capsys.readouterr().out
        found = re.search(r"top1 without SimAM (\S+)  with SimAM (\S+)  with its gains (\S+)", printed)
        assert found, printed
        plain, cold, warm = map(float, found.groups())
        assert plain > 0.85
        assert warm >= max(cold, plain - 0.1)
