"""Positions drawn: the very text, on real blocks and on small ones made here."""

import json

import pytest
import timm
import torch
import torchvision
from torch import nn
from typer.testing import CliRunner

from simam_inject import injected
from simam_inject.cli.app import app
from simam_inject.reporting import draw
from simam_inject.surgery import explain


def drawn(model, recipe, **options):
    explanation = explain(model, recipe, **options)
    return [str(drawing) for drawing in draw(explanation.plan.anatomy, explanation.plan.insertions)]


RESNET = {
    "after bottleneck.conv2": "conv1 > bn1 > relu > conv2 > [SimAM] > bn2 > relu > conv3 > bn3 > (+) > relu",
    "before bottleneck.bn2": "conv1 > bn1 > relu > conv2 > [SimAM] > bn2 > relu > conv3 > bn3 > (+) > relu",
    "before bottleneck.residual": "conv1 > bn1 > relu > conv2 > bn2 > relu > conv3 > bn3 > [SimAM] > (+) > relu",
    "after bottleneck.relu[2]": "conv1 > bn1 > relu > conv2 > bn2 > relu > [SimAM] > conv3 > bn3 > (+) > relu",
    "after bottleneck.add": "conv1 > bn1 > relu > conv2 > bn2 > relu > conv3 > bn3 > (+) > [SimAM] > relu",
    "after bottleneck": "conv1 > bn1 > relu > conv2 > bn2 > relu > conv3 > bn3 > (+) > relu > [SimAM]",
}


@pytest.mark.parametrize("recipe", RESNET)
def test_a_bottleneck_with_and_without_a_downsample(recipe):
    image = torch.rand(1, 3, 64, 64)
    assert drawn(torchvision.models.resnet50(), recipe, example_inputs=image) == [
        f"Bottleneck (4 blocks, first layer1.0)\n  {RESNET[recipe]}\n  x > downsample > (+)",
        f"Bottleneck (12 blocks, first layer1.1)\n  {RESNET[recipe]}\n  x > (+)",
    ]


def test_a_convnext_block():
    model = timm.create_model("convnext_atto")
    assert drawn(model, "before convnextblock.residual", example_inputs=torch.rand(1, 3, 64, 64)) == [
        (
            "ConvNeXtBlock (12 blocks, first stages.0.blocks.0)\n"
            "  conv_dw > norm > mlp > (*) > drop_path > [SimAM] > (+)\n"
            "  x > shortcut > (+)\n"
            "  reshape > (*)"
        )
    ]


class Split(nn.Module):
    """Halves its input, convolves one half, joins them again."""

    def __init__(self):
        super().__init__()
        self.cv1 = nn.Conv2d(4, 8, 1)
        self.cv2 = nn.Conv2d(4, 4, 1)
        self.cv3 = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        one, other = self.cv1(x).chunk(2, 1)
        return self.cv3(torch.cat((one, self.cv2(other)), 1))


def test_lines_that_meet_in_a_cat():
    model = nn.Sequential(Split())
    assert drawn(model, "after split.cat", example_inputs=torch.rand(1, 4, 8, 8)) == [
        "Split (0)\n  cv1 > getitem[2] > cv2 > (cat) > [SimAM] > cv3\n  cv1 > getitem > (cat)"
    ]


def test_a_block_that_cannot_be_looked_into():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(x) if x.shape[-1] > 4 else x

    model = nn.Sequential(Opaque())
    assert drawn(model, "after opaque", example_inputs=torch.rand(1, 4, 8, 8)) == ["Opaque (0)\n  ... > [SimAM]"]


def test_the_difference_shows_the_inserted_call_and_nothing_is_touched():
    model = nn.Sequential(Split())
    explanation = explain(model, "after split.cat", example_inputs=torch.rand(1, 4, 8, 8))
    added = [line for line in explanation.differences["0"].splitlines() if line.startswith("+ ")]
    assert any("self.simam_cat(cat)" in line for line in added)
    assert not injected(model)
    assert type(model[0]) is Split


def test_the_command_draws(tmp_path):
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\n\n\nclass Block(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3)\n"
        "        self.norm = nn.BatchNorm2d(4)\n\n"
        "    def forward(self, x):\n        return self.norm(self.conv(x))\n\n\n"
        "def make():\n    return nn.Sequential(Block())\n"
    )
    arguments = ["explain", f"{source}:make", "--after", "block.conv", "--input-size", "3x8x8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "conv > [SimAM] > norm" in result.stdout
    assert "simam_conv = self.simam_conv(conv)" in result.stdout
    report = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert report["blocks"][0]["lines"] == ["conv > [SimAM] > norm"]
