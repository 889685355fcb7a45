"""The anatomy by block class: counts, children, shapes, obstacles, and selectors that fit the model."""

import json

import pytest
import torch
import torchvision

from simam_inject import plan
from simam_inject.dataflow.anatomy import Anatomy, Site
from simam_inject.matching.match import match
from simam_inject.recipe.recipe import Recipe
from simam_inject.reporting.sites import render_sites, sites_to_dict, summarize
from tests.reporting.printing import printed


def block(path, class_name, shape, reduction, **facts):
    return Site(path, path.rpartition(".")[0], "block", class_name, shape=shape, reduction=reduction, **facts)


def inside(scope, name, kind, shape, reduction, **facts):
    path = f"{scope}.{name}" if scope else name
    return Site(path, scope, kind, shape=shape, reduction=reduction, **facts)


def residual_block(path, channels, length, reduction):
    shape = (1, channels, length, length)
    conv = {"kernel": (3, 3), "class_name": "Conv2d"}
    return [
        inside(path, "x", "input", shape, reduction),
        inside(path, "conv1", "conv2d", shape, reduction, **conv),
        inside(path, "conv2", "conv2d", shape, reduction, **conv, joins=f"{path}.add"),
        inside(path, "add", "add", shape, reduction),
        block(path, "BasicBlock", shape, reduction),
    ]


@pytest.fixture
def anatomy():
    return Anatomy(
        (
            *residual_block("layer1.0", 64, 56, 4),
            *residual_block("layer1.1", 64, 56, 4),
            block("layer1", "Sequential", (1, 64, 56, 56), 4),
            *residual_block("layer2.0", 128, 28, 8),
            *residual_block("layer3.0", 256, 14, 16),
            Site("fc", "", "linear", "Linear", shape=(1, 10), obstacle="is not a feature map"),
            block("", "Net", (1, 10), None, obstacle="is not a feature map"),
        ),
        ((1, 3, 224, 224),),
    )


def test_classes_with_counts_and_children(anatomy):
    basic, net, sequential = summarize(anatomy)
    assert basic.name == "BasicBlock"
    assert [site.path for site in basic.sites] == ["layer1.0", "layer1.1", "layer2.0", "layer3.0"]
    assert basic.maps == ["64x56x56", "128x28x28", "256x14x14"]
    assert basic.reductions == [4, 8, 16]
    assert [(child.name, child.kind, len(child.sites)) for child in basic.children] == [
        ("conv1", "conv2d 3x3", 4),
        ("conv2", "conv2d 3x3", 4),
        ("add", "add", 4),
    ]
    assert (net.name, net.obstacle) == ("Net", "is not a feature map")
    assert [child.name for child in net.children] == ["layer1", "fc"]
    assert sequential.name == "Sequential"


def test_an_obstacle_counts_only_if_every_site_has_it():
    free, blocked = block("a", "Block", (1, 4, 8, 8), 1), block("b", "Block", (1, 4, 8, 8), 1, obstacle="never ran")
    assert summarize(Anatomy((free, blocked)))[0].obstacle is None
    assert summarize(Anatomy((blocked,)))[0].obstacle == "never ran"


def test_a_map_of_one_pixel_cannot_be_attended():
    (found,) = summarize(Anatomy((block("pool", "Pool", (1, 4, 1, 1), None),)))
    assert found.obstacle.startswith("is a 1x1 map")


@pytest.mark.parametrize(
    ("sizes", "maps"), [((16, 8, 4, 8), ["4x16x16", "4x8x8", "4x4x4"]), ((4, 8), ["4x8x8", "4x4x4"])]
)
def test_maps_go_from_the_largest_to_the_smallest(sizes, maps):
    (found,) = summarize(Anatomy(tuple(block(f"b{i}", "C2f", (1, 4, s, s), 1) for i, s in enumerate(sizes))))
    assert found.maps == maps


def render(anatomy):
    return printed(*render_sites(anatomy), width=80)


def test_the_report_lists_classes_and_selectors_that_fit_the_model(anatomy):
    lines = render(anatomy)
    assert lines[2].split() == ["BasicBlock", "block", "4", "64x56x56", "..", "256x14x14", "4..16"]
    assert lines[4].split() == ["conv2", "conv2d", "3x3", "4", "64x56x56", "..", "256x14x14", "4..16"]
    assert ["Net", "block", "1", "(1,", "10)", "*", "-"] in [line.split() for line in lines]
    assert "* Net, Net.fc: is not a feature map" in lines
    assert lines[-3:] == ["  --after basicblock", "  --after basicblock.conv2", "  --before basicblock.residual"]


def test_children_of_a_container_can_be_named_and_the_result_is_not_suggested():
    shape = (1, 8, 16, 16)
    sites = []
    for block_path in ("down", "up"):
        for index, kind in enumerate(("conv2d", "relu", "conv2d")):
            sites.append(inside(f"{block_path}.net", str(index), kind, shape, 1, class_name="X", kernel=(3, 3)))
        sites.append(block(f"{block_path}.net", "Sequential", shape, 1))
        sites.append(block(block_path, "DoubleConv", shape, 1))
    sites.append(inside("", "out", "conv2d", (1, 2, 16, 16), 1, kernel=(1, 1)))
    sites.append(block("", "UNet", (1, 2, 16, 16), 1))
    found = {entry.name: entry for entry in summarize(Anatomy(tuple(sites)))}
    assert [child.name for child in found["DoubleConv"].children] == ["net.0", "net.1", "net.2", "net"]
    lines = render(Anatomy(tuple(sites)))
    assert lines[-2:] == ["  --after doubleconv", "  --after doubleconv.net.2"]
    assert not any("unet" in line for line in lines)


def test_a_child_is_listed_as_a_rule_names_it_with_all_its_sites():
    shape = (1, 8, 16, 16)
    sites = []
    for path, unit in (("a", inside("a.net", "0", "conv2d", shape, 1)), ("b", block("b.net.0", "Unit", shape, 1))):
        sites += [unit, block(f"{path}.net", "Sequential", shape, 1), inside(path, "output", "relu", shape, 1)]
        sites += [inside(path, "add", "add", shape, 1), inside(path, "add[2]", "add", shape, 1)]
        sites.append(block(path, "Block", shape, 1))
    found = {entry.name: entry for entry in summarize(Anatomy(tuple(sites)))}["Block"]
    names = {child.name: (child.kind, len(child.sites)) for child in found.children}
    assert names["net.0"] == ("conv2d / Unit", 2)
    assert list(names) == ["net.0", "net", "{output}", "add[1]", "add[2]"]


def test_a_class_of_blocks_that_return_lists_has_the_maps_as_sites():
    unit = block("a.0", "Unit", None, None, maps=("a.0:0", "a.0:1"), obstacle="returns 2 tensors")
    maps = [block(path, None, (1, 8, 16, 16), 1) for path in unit.maps]
    anatomy = Anatomy((*maps, unit, block("a", "Sequential", (1, 8, 16, 16), 1), block("", "Net", (1, 10), None)))
    assert next((group.name, group.kind, len(group.sites)) for group in summarize(anatomy)) == ("Unit", "block", 2)
    assert not [group for group in summarize(anatomy) if ":" in group.name]
    assert render(anatomy)[-1] == "  --after unit"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_each_name_of_a_child_selects_the_sites_of_its_row(name):
    model = torchvision.models.get_model(name).eval()
    anatomy = plan(model, "block-output", example_inputs=torch.rand(1, 3, 64, 64)).anatomy
    for group in summarize(anatomy):
        for child in [child for child in group.children if child.obstacle is None and group.name != "Sequential"]:
            found = match(Recipe(rules=[{"block": group.name, "after": child.name}]), anatomy)
            assert {hit.named.path for hit in found.hits} == {site.path for site in child.sites}, child.name


def test_a_model_without_blocks_gets_a_recipe():
    lines = render(Anatomy((Site("", "", "conv2d", "Conv2d", shape=(1, 4, 8, 8)),)))
    assert lines[-1] == "  --recipe every-conv"


def test_dict_is_json(anatomy):
    data = json.loads(json.dumps(sites_to_dict(anatomy)))
    assert data["input_shapes"] == [[1, 3, 224, 224]]
    assert data["classes"][0]["count"] == 4
    assert data["classes"][0]["children"][1]["maps"] == ["64x56x56", "128x28x28", "256x14x14"]
