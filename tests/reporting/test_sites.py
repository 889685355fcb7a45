"""The anatomy by block class: counts, children, shapes, obstacles, and selectors that fit the model."""

import io
import json

import pytest
from rich.console import Console

from simam_inject.discovery.records import Anatomy, Site
from simam_inject.reporting import render_sites, sites_to_dict, summarize


def block(path, class_name, shape, reduction, **facts):
    return Site(path, path.rpartition(".")[0], "block", class_name, shape=shape, reduction=reduction, **facts)


def inside(scope, name, kind, shape, reduction, **facts):
    return Site(f"{scope}.{name}", scope, kind, shape=shape, reduction=reduction, **facts)


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
        {"head": "branches on a shape"},
    )


def test_classes_with_counts_and_children(anatomy):
    basic, net, sequential = summarize(anatomy)
    assert (basic.name, basic.count, basic.paths) == ("BasicBlock", 4, ("layer1.0", "layer1.1", "layer2.0", "layer3.0"))
    assert basic.maps == ("64x56x56", "128x28x28", "256x14x14")
    assert basic.reductions == (4, 8, 16)
    assert [(child.name, child.kind, child.count, child.joins) for child in basic.children] == [
        ("conv1", "conv2d 3x3", 4, False),
        ("conv2", "conv2d 3x3", 4, True),
        ("add", "add", 4, False),
    ]
    assert (net.name, net.obstacle) == ("Net", "is not a feature map")
    assert [child.name for child in net.children] == ["layer1", "fc"]
    assert sequential.is_container


def test_an_obstacle_counts_only_if_every_site_has_it():
    free, blocked = block("a", "Block", (1, 4, 8, 8), 1), block("b", "Block", (1, 4, 8, 8), 1, obstacle="never ran")
    assert summarize(Anatomy((free, blocked)))[0].obstacle is None
    assert summarize(Anatomy((blocked,)))[0].obstacle == "never ran"


def test_a_map_of_one_pixel_cannot_be_attended():
    (found,) = summarize(Anatomy((block("pool", "Pool", (1, 4, 1, 1), None),)))
    assert found.obstacle == "is a 1x1 map: its gate would be the constant sigmoid(0.5)"


def test_maps_go_from_the_largest_to_the_smallest():
    sizes = {"a": 16, "b": 8, "c": 4, "d": 8}
    (found,) = summarize(Anatomy(tuple(block(name, "C2f", (1, 4, size, size), 1) for name, size in sizes.items())))
    assert found.maps == ("4x16x16", "4x8x8", "4x4x4")
    (found,) = summarize(
        Anatomy(tuple(block(name, "C2f", (1, 4, size, size), 1) for name, size in list(sizes.items())[2:]))
    )
    assert found.maps == ("4x8x8", "4x4x4")


def test_report(anatomy):
    console = Console(file=io.StringIO(), width=110)
    console.print(render_sites(anatomy, heading="net"))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
    assert lines[0] == "net"
    assert lines[3].split() == ["BasicBlock", "block", "4", "64x56x56", "..", "256x14x14", "4,", "8,", "16"]
    assert lines[5].split() == ["conv2", "conv2d", "3x3", "4", "64x56x56", "..", "256x14x14", "4,", "8,", "16"]
    assert any(line.split()[:3] == ["Net", "block", "1"] and "no: is not a feature map" in line for line in lines)
    assert lines[-6:] == [
        "1 block cannot be edited inside; what they return can be attended:",
        "  head: branches on a shape",
        "name a place with:",
        "  --after basicblock",
        "  --after basicblock.conv2",
        "  --before basicblock.residual",
    ]


def test_next_steps_replace_the_selectors(anatomy):
    console = Console(file=io.StringIO(), width=110)
    console.print(render_sites(anatomy, next_steps=("do this",)))
    assert console.file.getvalue().splitlines()[-1] == "  do this"


def test_no_block_no_selector():
    console = Console(file=io.StringIO(), width=110)
    console.print(render_sites(Anatomy((Site("", "", "conv2d", "Conv2d", shape=(1, 4, 8, 8)),))))
    assert "--after" not in console.file.getvalue()


def test_dict_is_json(anatomy):
    data = sites_to_dict(anatomy)
    assert json.loads(json.dumps(data)) == data
    assert data["input_shapes"] == [[1, 3, 224, 224]]
    assert data["opaque"] == {"head": "branches on a shape"}
    assert data["classes"][0]["count"] == 4
    assert data["classes"][0]["children"][1]["maps"] == ["64x56x56", "128x28x28", "256x14x14"]
