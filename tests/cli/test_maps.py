"""`simam-inject maps`: the picture is written, the numbers are those of `attention_maps`, mistakes have one message."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simam_inject import inject
from simam_inject.maps import attention_maps
from simam_inject.pictures import photograph
from simam_inject.warmup import calibrate
from simam_inject.zoo import build

pytest.importorskip("matplotlib")
NET = "nets.py:make_deep"
USUAL = (NET, "folder/0.png", "--after", "block.conv1", "--input-size", "3x32x48")


@pytest.fixture
def maps(run, folder):
    """`maps("nets.py:Net", "a.png", ...)` -> exit code, stdout, stderr; there are three images in `folder`."""
    (folder / "folder").mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 40)).save(folder / "folder" / f"{index}.png")

    def call(*words):
        result = run("maps", *words)
        return result.exit_code, result.stdout, result.stderr

    return call


def ranges(out, image=0):
    return json.loads(out)["images"][image]["sites"]


def test_a_picture_and_its_numbers(maps):
    code, out, err = maps(*USUAL, "--json")
    assert code == 0, err
    assert list(ranges(out)) == ["blocks.1.conv1", "blocks.3.conv1"]  # the last of each map size
    model = inject(build(NET).model, "after block.conv1", example_inputs=torch.rand(1, 3, 32, 48), verify=False)
    found = attention_maps(model, photograph(Path("folder/0.png"), (3, 32, 48)).input)["blocks.3.conv1"]
    least, most = ranges(out)["blocks.3.conv1"]
    assert [least, most] == pytest.approx([found.min().item(), found.max().item()])
    assert 0.62 < least < most < 1
    picture = np.asarray(Image.open("maps.png").convert("RGB"))
    assert picture.std() > 20
    assert picture.shape[1] > picture.shape[0]


def test_folders_sites_channels_and_formats(maps):
    place = ("--after", "block.conv1", "--input-size", "3x32x32", "--site", "blocks.[01].*", "--channel", "2")
    code, out, err = maps(NET, "folder", "folder/1.png", *place, "--output", "all.svg")
    assert code == 0, err
    assert out.splitlines() == ["all.svg: 4 images, blocks.0.conv1, blocks.1.conv1"]
    assert "<svg" in Path("all.svg").read_text()


def test_differences_follow_the_strength(maps):
    def largest(*more):
        code, out, err = maps(*USUAL, "--difference", "--json", *more)
        assert code == 0, err
        least, most = ranges(out)["blocks.3.conv1"]
        assert most > least >= 0
        return most

    assert 0.1 < largest("--strength", "0.5") < largest()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((NET, "none.png", "--after", "block.conv1"), 2, "path 'none.png' does not exist"),
        ((NET, "nets.py", "--after", "block.conv1"), 2, "nets.py cannot be read as an image"),
        ((NET, "folder/0.png"), 2, f"{NET} has no SimAM: add --recipe NAME"),
        ((*USUAL, "--site", "three.*"), 1, "--site three.*; SimAM is at blocks.0.conv1, blocks.1.conv1"),
        ((*USUAL, "--site", "{three"), 2, "--site: '{three' has an unbalanced brace"),
        ((*USUAL, "--channel", "8"), 2, "has channels 0 to 7; found 8"),
        ((*USUAL, "--output", "maps.txt"), 2, "must end in .png, .jpg, .pdf, .svg"),
        ((*USUAL, "--output", "none/maps.png"), 2, "no such folder: 'none'"),
        ((*USUAL, *["folder"] * 6), 2, "19 images"),
    ],
)
def test_a_mistake_is_one_message(maps, words, code, message):
    found, out, err = maps(*words)
    assert message in err.replace("\n", " ")
    assert found == code
    assert out == ""


def test_names_with_spaces(maps, folder):
    (folder / "levels.py").write_text(
        "from torch import nn\n\n\n"
        "class Levels(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.c, self.d = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, 2)\n\n"
        "    def forward(self, x):\n"
        "        return {('p', 3): self.c(x), ('p', 4): self.d(x)}\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.neck = Levels()\n\n"
        "    def forward(self, x):\n"
        "        return self.neck(x)['p', 3]\n"
    )
    words = ("--after", "levels.output:('p', 3)", "--input-size", "3x32x48", "--json")
    code, out, err = maps("levels.py:Net", "folder/0.png", *words)
    assert (code, err) == (0, "")
    assert [*ranges(out)] == ["neck:('p', 3)"]


def test_a_yolo_checkpoint_with_its_letterbox(maps, folder):
    yolo = pytest.importorskip("ultralytics").YOLO("yolov8n.yaml")
    inject(yolo, "yolo-bottleneck", example_inputs=torch.rand(1, 3, 64, 64), verify=False)
    calibrate(yolo, torch.rand(4, 3, 96, 96))  # as new, its maps are so small that lambda makes the gates constant
    yolo.save("injected.pt")
    code, out, err = maps("injected.pt", "folder/0.png", "--input-size", "3x96x96", "--json", "--site", "model.2.*")
    assert code == 0, err
    site, (least, most) = next(iter(ranges(out).items()))
    shot = photograph(folder / "folder/0.png", (3, 96, 96), letterbox=True)
    assert shot.box == (16, 0, 64, 96)
    expected = attention_maps(yolo, shot.input)[site]
    assert [least, most] == pytest.approx([expected.min().item(), expected.max().item()], abs=2e-3)  # saved as float16
    stretched = attention_maps(yolo, photograph(folder / "folder/0.png", (3, 96, 96)).input)[site]
    assert abs(stretched.max() - expected.max()) > 0.05 * (expected.max() - expected.min())


def test_a_size_that_the_network_does_not_take_is_one_message(maps, run):
    fixed = "nets.py:make_fixed"
    run(fixed, "--after", "block", "--input-size", "3x32x32", "--output", "x.safetensors")
    assert maps(fixed, "folder/0.png", "--weights", "x.safetensors")[0] == 0
    code, out, err = maps(fixed, "folder/0.png", "--weights", "x.safetensors", "--input-size", "3x48x48")
    assert (code, out) == (2, "")
    assert "cannot be run on the example input (1x3x48x48)" in err
