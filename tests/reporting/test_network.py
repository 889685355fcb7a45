"""The network as a picture: which boxes there are, how high they are, and where SimAM is marked."""

import re
import xml.dom.minidom

from simam_inject.dataflow.anatomy import Anatomy, Site
from simam_inject.planning.insertions import Insertion, Output
from simam_inject.reporting.page import HEIGHT, boxes_of, draw_network


def site(path, kind, class_name, channels, length, **facts):
    spatial = facts.pop("spatial", (length, length))
    scope = path.rpartition(".")[0]
    return Site(path, scope, kind, class_name, shape=(1, channels, *spatial), reduction=64 // length or None, **facts)


SITES = (
    site("stem", "conv2d", "Conv2d", 16, 32),
    site("layers.0.conv", "conv2d", "Conv2d", 16, 32),
    site("layers.0", "block", "Block", 16, 32, structure=("main",)),
    site("layers.1.conv", "conv2d", "Conv2d", 32, 16),
    site("layers.1", "block", "Block", 32, 16, structure=("main",)),
    site("layers", "block", "Sequential", 32, 16),
    site("pool", "adaptive_avg_pool", "AdaptiveAvgPool2d", 32, 1),
    site("boxes", "conv1d", "Conv1d", 32, 64, spatial=(8400,)),
    site("", "block", "Net", 32, 16),
)
INSERTIONS = (
    Insertion("layers.0.conv", "after", (1, 16, 32, 32), 1e-4, 0, Output("layers.0.conv"), "layers.0.conv.simam"),
    Insertion("layers.1", "after", (1, 32, 16, 16), 1e-4, 0, Output("layers.1"), "layers.1.simam"),
)


def test_blocks_and_what_is_between_them_are_drawn():
    boxes = boxes_of(Anatomy(SITES), INSERTIONS)
    assert [(site.path, len(inside)) for site, inside in boxes] == [("stem", 0), ("layers.0", 1), ("layers.1", 1)]


def test_a_list_as_a_map_does_not_shrink_the_others():
    dfl = site("dfl", "conv2d", "Conv2d", 16, 4, spatial=(4, 8400))  # YOLO's distribution of distances
    text = draw_network(Anatomy((*SITES[:-1], dfl)), INSERTIONS)
    assert re.findall(r">(\d+ px)<", text) == ["32 px", "16 px", "4 px"]


def test_what_is_drawn_has_the_dimensions_of_the_sites():
    """Whatever else there is: a shuffle of channels looks like a volume, and a sequence is longer than an image."""
    shuffle = site("layers.0.view", "view", None, 2, 8, spatial=(8, 32, 32))
    boxes = boxes_of(Anatomy((*SITES, shuffle, shuffle)), INSERTIONS)
    assert [(site.path, len(inside)) for site, inside in boxes] == [("stem", 0), ("layers.0", 1), ("layers.1", 1)]
    lone = Insertion("boxes", "after", (1, 32, 8400), 1e-4, 0, Output("boxes"), "boxes.simam")
    assert [(site.path, len(inside)) for site, inside in boxes_of(Anatomy(SITES), (lone,))] == [("boxes", 1)]


def test_heights_are_to_scale_and_each_simam_is_a_mark():
    text = draw_network(Anatomy(SITES), INSERTIONS)
    document = xml.dom.minidom.parseString(text)
    boxes = [box for box in document.getElementsByTagName("rect") if box.getAttribute("class") != "simam"]
    assert [float(box.getAttribute("height")) for box in boxes] == [HEIGHT, HEIGHT, HEIGHT / 2]
    assert [box.getAttribute("class") for box in boxes] == ["operation", "attended", "attended"]
    assert text.count('class="simam"') == 2
    assert re.findall(r">(\d+ px|1/\d+|\d+ SimAM)<", text) == ["32 px", "1/2", "1 SimAM", "16 px", "1/4", "1 SimAM"]


def test_a_site_outside_of_every_block_has_a_box_of_its_own():
    lone = Insertion("act", "after", (1, 16, 32, 32), 1e-4, 0, Output("act"), "act.simam")
    boxes = boxes_of(Anatomy((*SITES, site("act", "relu", "ReLU", 16, 32))), (lone,))
    assert ("act", 1) in [(site.path, len(inside)) for site, inside in boxes]


def test_a_site_on_a_container_is_drawn_once():
    """The blocks inside have boxes of their own, so their SimAMs are not in that of the container too."""
    around = Insertion("layers", "after", (1, 32, 16, 16), 1e-4, 0, Output("layers"), "layers.simam")
    boxes = boxes_of(Anatomy(SITES), (*INSERTIONS, around))
    assert [(site.path, len(inside)) for site, inside in boxes][1:] == [("layers.0", 1), ("layers.1", 1), ("layers", 1)]


def test_a_network_without_maps_is_not_drawn():
    assert draw_network(Anatomy((Site("fc", "", "linear", "Linear", shape=(1, 10)),)), ()) == ""
