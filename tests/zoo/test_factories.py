"""Models of the user's own, from files and modules."""

import sys

import pytest
from torch import nn

from simam_inject.errors import ModelError
from simam_inject.zoo import build
from tests.messages import says

SOURCE = """
from torch import nn

from parts import WIDTH

class Net(nn.Sequential):
    def __init__(self, num_classes=3):
        super().__init__(nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, num_classes, 1))

ready = Net()
number = 7

def make_net(num_classes=3, **options):
    net = Net(num_classes)
    net.options = options
    return net

def make_late():
    import late
    return late.net

def make_yolo():
    from ultralytics import YOLO
    return YOLO("yolov8n.yaml")

def make_text(): return "net"
def make_nothing(): pass
def make_wide(width, *, depth, **options): return Net()
def fail(): raise ValueError("no weights here\\nmore")
"""


@pytest.fixture
def folder(project):
    """A project with a file of models."""
    nets = project / "nets"
    nets.mkdir()
    (nets / "own_nets.py").write_text(SOURCE)
    (nets / "parts.py").write_text("WIDTH = 4")
    (nets / "late.py").write_text("from torch import nn\nnet = nn.Conv2d(3, 4, 1)")
    (nets / "broken.py").write_text("import not_there_at_all")
    (nets / "wrong.py").write_text("def f(:")
    return nets


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("nets/own_nets.py:make_net", "Net"),
        ("nets/own_nets.py:Net", "Net"),
        ("nets/own_nets.py:ready", "Net"),
        ("nets/own_nets.py:make_late", "Conv2d"),
        ("torch.nn:Identity", "Identity"),
        ("nets/own_nets.py:make_yolo", "YOLO"),
    ],
)
def test_a_factory_class_or_model_is_built_by_its_name(name, class_name, folder):
    path = list(sys.path)
    built = build(name)
    assert type(built.model).__name__ == class_name
    assert built.source == name.rpartition(":")[0]
    assert built.input_shapes == ()
    assert sys.path == path


def test_a_file_without_a_factory_lists_what_is_in_it(folder):
    marker = folder / "ran"
    (folder / "own_nets.py").write_text(f"{SOURCE}\nopen({str(marker)!r}, 'w')")
    listed = "Net, ready, make_net, make_late, make_yolo, make_text, make_nothing, make_wide, fail"
    for name, facts in (
        ("nets/own_nets.py", [listed, "nets/own_nets.py:fail"]),
        ("nets/parts.py", ["no function, class or model"]),
        ("nets/wrong.py", ["SyntaxError"]),
    ):
        with pytest.raises(ModelError, match=says(name, *facts)):
            build(name)
    assert not marker.exists()


def test_module_in_the_working_directory(folder):
    assert type(build("nets.late:net").model) is nn.Conv2d


def test_options_reach_a_factory_that_takes_them(folder):
    net = build("nets/own_nets.py:make_net", pretrained=True, num_classes=9).model
    assert net[1].out_channels == 9
    assert net.options == {"pretrained": True}


def test_classes_of_the_file_can_be_pickled(folder):
    net = build("nets/own_nets.py:Net").model
    assert sys.modules[type(net).__module__].Net is type(net)


def test_a_file_named_like_a_loaded_module_stands_beside_it(folder):
    (folder / "json.py").write_text("from torch import nn\nnet = nn.Identity()")
    import json

    assert type(build("nets/json.py:net").model) is nn.Identity
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "options", "facts"),
    [
        ("nets/nope.py:make", {}, ["no such file: nets/nope.py"]),
        ("nope.nets:make", {}, ["nope.nets cannot be imported", "No module named 'nope'"]),
        ("nets.nope:make", {}, ["nets.nope cannot be imported", "No module named 'nets.nope'"]),
        ("nets/broken.py:make", {}, ["nets/broken.py cannot be imported", "No module named 'not_there_at_all'"]),
        ("nets/wrong.py:f", {}, ["nets/wrong.py cannot be imported", "SyntaxError"]),
        ("nets/own_nets.py:make_nett", {}, ["no 'make_nett'", "mean make_net"]),
        ("nets/parts.py:x", {}, ["no 'x'", "WIDTH"]),
        ("nets/own_nets.py:number", {}, ["an int", "torch.nn.Module"]),
        ("nets/own_nets.py:make_text", {}, ["a str", "torch.nn.Module"]),
        ("nets/own_nets.py:make_nothing", {}, ["a NoneType", "torch.nn.Module"]),
        ("nets/own_nets.py:fail", {}, ["the factory raised ValueError: no weights here", "(own_nets.py:"]),
        ("nets/own_nets.py:make_wide", {}, ["the factory raised TypeError: make_wide() missing "]),
        ("nets/own_nets.py:fail", {"num_classes": 3}, ["unexpected keyword", "; it was called with num_classes"]),
        ("nets/own_nets.py:Net", {"pretrained": True}, ["the factory raised TypeError: "]),
        ("nets/own_nets.py:ready", {"num_classes": 2}, ["finished model", "num_classes"]),
    ],
)
def test_mistakes_are_one_line(name, options, facts, folder):
    path = list(sys.path)
    with pytest.raises(ModelError, match=says(*facts)) as caught:
        build(name, **options)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    assert sys.path == path


def test_a_file_that_failed_can_be_mended_and_imported(folder):
    with pytest.raises(ModelError):
        build("nets/broken.py:net")
    (folder / "broken.py").write_text("from torch import nn\nnet = nn.Identity()")
    assert type(build("nets/broken.py:net").model) is nn.Identity
