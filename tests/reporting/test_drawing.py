"""Positions drawn: the very text, on real blocks and on small ones made here."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from simam_inject import plan
from simam_inject.reporting.drawing import draw
from simam_inject.reporting.sites import summarize
from tests.engine.test_targets import TwoNames


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


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ("after twonames.conv2", "0 > 1 > 2 > [SimAM] > 3"),
        ("after twonames.net.1", "0 > 1 > [SimAM] > 2 > 3"),
        ("before twonames.relu2", "0 > 1 > 2 > [SimAM] > 3"),
    ],
)
def test_a_module_with_two_names_is_drawn_once_where_it_is_called(recipe, line):
    model = nn.Sequential(TwoNames(), TwoNames())
    assert drawn(model, recipe, example_inputs=torch.rand(1, 6, 8, 8)) == [
        f"Sequential (2 blocks, first 0.net)\n  {line}"
    ]


def test_the_second_name_of_a_module_is_listed_with_its_class():
    anatomy = plan(nn.Sequential(TwoNames()), "after twonames", example_inputs=torch.rand(1, 6, 8, 8)).anatomy
    (block,) = (group for group in summarize(anatomy) if group.name == "TwoNames")
    kinds = {child.name: child.kind for child in block.children}
    assert (kinds["net.0"], kinds["conv1"], kinds["relu1"]) == ("conv2d 3x3", "Conv2d", "ReLU")
