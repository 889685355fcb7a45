"""`simam-inject maps`: the picture is written, the numbers are those of `attention_maps`, mistakes have one message."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from simam_inject import inject
from simam_inject.cli.app import app
from simam_inject.maps import attention_maps
from simam_inject.pictures import photograph
from simam_inject.warmup import calibrate

pytest.importorskip("matplotlib")

NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + torch.relu(self.conv(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.one = nn.Sequential(Block(8), Block(8))
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.two = nn.Sequential(Block(8))

    def forward(self, x):
        return self.two(self.down(self.one(self.stem(x)))).mean((2, 3))


def small():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def run(project):
    (project / "net.py").write_text(NET)
    (project / "folder").mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 40)).save(project / "folder" / f"{index}.png")

    def call(*words):
        result = CliRunner().invoke(app, ["maps", *words])
        return result.exit_code, result.stdout, result.stderr

    return call


USUAL = ("net.py:small", "folder/0.png", "--after", "Block.conv", "--input-size", "3x32x48")


def test_a_picture_and_its_numbers(run, project):
    code, out, err = run(*USUAL, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert list(report["images"][0]["sites"]) == ["one.1.conv", "two.0.conv"]  # the last of each map size
    import importlib.util

    spec = importlib.util.spec_from_file_location("net", project / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = inject(module.small(), "after Block.conv", example_inputs=torch.rand(1, 3, 32, 48), verify=False)
    found = attention_maps(model, photograph(project / "folder/0.png", (3, 32, 48)).input)
    least, most = report["images"][0]["sites"]["two.0.conv"]
    assert [least, most] == pytest.approx([found["two.0.conv"].min().item(), found["two.0.conv"].max().item()])
    assert 0.62 < least < most < 1
    picture = np.asarray(Image.open("maps.png").convert("RGB"))
    assert picture.std() > 20
    assert picture.shape[1] > picture.shape[0]


def test_folders_sites_channels_and_formats(run):
    code, out, err = run(
        "net.py:small",
        "folder",
        "folder/1.png",
        "--after",
        "Block.conv",
        "--input-size",
        "3x32x32",
        "--site",
        "one.*",
        "--channel",
        "2",
        "--output",
        "all.svg",
    )
    assert code == 0, err
    assert out.splitlines() == ["all.svg: 4 images, one.0.conv, one.1.conv"]
    assert "<svg" in Path("all.svg").read_text()


def test_differences(run, project):
    code, out, err = run(*USUAL, "--difference", "--json")
    assert code == 0, err
    least, most = json.loads(out)["images"][0]["sites"]["two.0.conv"]
    assert most > least >= 0
    assert most > 0.1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("net.py:small", "none.png", "--after", "Block.conv"), 2, "no such file or folder: 'none.png'"),
        (("net.py:small", "net.py", "--after", "Block.conv"), 2, "net.py cannot be read as an image"),
        (("net.py:small", "folder/0.png"), 2, "net.py:small has no SimAM: add --recipe NAME"),
        ((*USUAL, "--site", "three.*"), 1, "no site matches --site three.*; SimAM is at one.0.conv, one.1.conv"),
        ((*USUAL, "--channel", "8"), 2, "has channels 0 to 7; found 8"),
        ((*USUAL, "--output", "maps.txt"), 2, "must end in .png, .jpg, .pdf, .svg"),
        ((*USUAL, "--output", "none/maps.png"), 2, "no such folder: 'none'"),
        ((*USUAL, *["folder"] * 6), 2, "19 images do not fit into one picture; give at most 16"),
    ],
)
def test_mistakes(run, words, code, message, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found, out, err = run(*words)
    assert message in err.replace("\n", " ")
    assert found == code
    assert out == ""


def test_a_yolo_checkpoint_with_its_letterbox(run, project):
    yolo = pytest.importorskip("ultralytics").YOLO("yolov8n.yaml")
    inject(yolo, "yolo-bottleneck", example_inputs=torch.rand(1, 3, 64, 64), verify=False)
    calibrate(yolo, torch.rand(4, 3, 96, 96))  # as new, its maps are so small that lambda makes the gates constant
    yolo.save("injected.pt")
    code, out, err = run("injected.pt", "folder/0.png", "--input-size", "3x96x96", "--json", "--site", "model.2.*")
    assert code == 0, err
    site, (least, most) = next(iter(json.loads(out)["images"][0]["sites"].items()))
    shot = photograph(project / "folder/0.png", (3, 96, 96), letterbox=True)
    assert shot.box == (16, 0, 64, 96)
    expected = attention_maps(yolo, shot.input)[site]
    assert [least, most] == pytest.approx([expected.min().item(), expected.max().item()], abs=2e-3)  # saved as float16
    stretched = attention_maps(yolo, photograph(project / "folder/0.png", (3, 96, 96)).input)[site]
    assert abs(stretched.max() - expected.max()) > 0.05 * (expected.max() - expected.min())
