"""Positions drawn: the very text, on real blocks and on small ones made here."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from simam_inject import plan
from simam_inject.reporting.drawing import draw


def drawn(model, recipe, **options):
    found = plan(model, recipe, **options)
    return [str(drawing) for drawing in draw(found.anatomy, found.insertions)]


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
        "Split (0)\n  cv1 > chunk > cv2 > (cat) > [SimAM] > cv3\n  chunk > (cat)"
    ]


def test_the_output_of_a_plain_container():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 1))
    rule = {"rules": [{"path": "0", "after": "output"}]}
    assert drawn(model, rule, example_inputs=torch.rand(1, 4, 8, 8)) == [
        "Sequential (the model itself)\n  0 > [SimAM] > 1"
    ]


def test_a_value_that_one_reader_alone_gets():
    model = torchvision.models.resnet18()
    (first, *_) = drawn(model, "before basicblock.conv1", example_inputs=torch.rand(1, 3, 64, 64))
    assert "x > [SimAM] > conv1 > bn1" in first or "[SimAM] > conv1 > bn1" in first
