"""Names: which library has one, what is near to one that none has."""

import re

import pytest
from ultralytics.nn.tasks import ClassificationModel

from simam_inject.dataflow.example import declared_size
from simam_inject.errors import ModelError
from simam_inject.zoo import build
from simam_inject.zoo.names import list_ultralytics
from tests.messages import says


@pytest.mark.parametrize(
    ("name", "source", "class_name", "input_shapes"),
    [
        ("resnet18", "torchvision", "ResNet", ((1, 3, 224, 224),)),
        ("torchvision:squeezenet1_1", "torchvision", "SqueezeNet", ((1, 3, 224, 224),)),
        ("torchvision:googlenet", "torchvision", "GoogLeNet", ((1, 3, 224, 224),)),
        ("torchvision:lraspp_mobilenet_v3_large", "torchvision", "LRASPP", ((1, 3, 520, 520),)),
        ("torchvision:mc3_18", "torchvision", "VideoResNet", ((1, 3, 16, 112, 112),)),
        ("torchvision:raft_small", "torchvision", "RAFT", ((1, 3, 128, 128),) * 2),
        ("timm:resnet18", "timm", "ResNet", ((1, 3, 224, 224),)),
        ("timm:resnet18.a1_in1k", "timm", "ResNet", ((1, 3, 224, 224),)),
        ("convnext_atto", "timm", "ConvNeXt", ((1, 3, 224, 224),)),
        ("yolov8n", "ultralytics", "YOLO", ((1, 3, 640, 640),)),
        ("ultralytics:yolo11n-cls", "ultralytics", "YOLO", ((1, 3, 224, 224),)),
        ("ultralytics:rtdetr-resnet50", "ultralytics", "RTDETR", ((1, 3, 640, 640),)),
    ],
)
def test_name_reaches_its_library(name, source, class_name, input_shapes):
    built = build(name)
    assert (built.name, built.source, type(built.model).__name__) == (name, source, class_name)
    assert built.input_shapes == input_shapes
    assert built.note.startswith("random weights")


@pytest.mark.parametrize(("sizes", "side"), [({}, 224), ({"imgsz": 640}, 224), ({"imgsz": 320}, 320)])
def test_a_classifier_of_ultralytics_declares_the_size_that_it_is_trained_with(sizes, side):
    network = ClassificationModel("yolov8n-cls.yaml", verbose=False)
    assert declared_size(network) == (3, 224, 224)
    network.args = sizes
    assert declared_size(network) == (3, side, side)


@pytest.mark.parametrize(
    ("name", "size"),
    [("ssdlite320_mobilenet_v3_large", 320), ("fasterrcnn_mobilenet_v3_large_fpn", 800)],
)
def test_detectors_take_a_list_at_the_size_they_resize_to(name, size):
    built = build(name)
    assert built.takes_list
    assert built.input_shapes == ((3, size, size),)


def test_a_torchvision_name_of_timm_too_is_told():
    assert re.search(r"torchvision's.* timm:resnet18", build("resnet18").note)
    assert build("torchvision:resnet18").note == "random weights"


@pytest.mark.parametrize(
    ("name", "classes_of"),
    [
        ("resnet18", lambda model: model.fc.out_features),
        ("timm:resnet18", lambda model: model.fc.out_features),
        ("yolov8n", lambda model: model.model.model[-1].nc),
        ("yolov8n-cls", lambda model: model.model.model[-1].linear.out_features),
    ],
)
def test_num_classes_sizes_the_head(name, classes_of):
    assert classes_of(build(name, num_classes=7).model) == 7


def test_every_scale_of_a_packaged_yaml_is_listed():
    names = list_ultralytics()
    assert {"yolov8n", "yolov8x-seg", "yoloe-11s-seg", "yolov9c", "yolov10n", "rtdetr-l", "yolov8n-rtdetr"} <= {*names}
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "classes", "facts"),
    [
        ("resnet5O", None, ["no library", "'resnet5O'", "mean resnet50,"]),
        ("timm:convnext_ato", None, ["timm has no model 'convnext_ato'", "mean convnext_atto,"]),
        ("timm:resnet50.a9_in1k", None, ["timm:resnet50.a9_in1k", "Invalid pretrained"]),
        ("torchvision:resnet50d", None, ["torchvision has no model 'resnet50d'", "mean resnet50,"]),
        ("yolov8q", None, ["'yolov8q'", "mean yolov8"]),
        ("ultralytics:resnet50", None, ["ultralytics has no model 'resnet50'"]),
        ("yolov8nn.pt", None, ["no such file: yolov8nn.pt", "no checkpoint of that name", "mean"]),
        ("qqqqqqqq", None, ["'qqqqqqqq'", "NAME, torchvision:NAME, timm:NAME,"]),
        ("", None, ["no name"]),
        ("net.py", None, ["no such file: net.py"]),
        ("mine.yaml", None, ["no such file: mine.yaml", "ultralytics has no model 'mine'"]),
        ("cfg/yolov8n-mine.yaml", None, ["no such file: cfg/yolov8n-mine.yaml"]),
        ("runs/yolov8n-best.pt", None, ["no such file: runs/yolov8n-best.pt"]),
        ("resnet18", 0, ["num_classes is 0", "at least 1"]),
        ("mine.pt", 7, ["changes with the data set"]),
        ("raft_small", 7, ["torchvision:raft_small: ", "TypeError", "num_classes"]),
    ],
)
def test_a_name_that_cannot_be_built_says_what_is_near(name, classes, facts, project):
    (project / "mine.pt").touch()
    with pytest.raises(ModelError, match=says(*facts)) as caught:
        build(name, num_classes=classes)
    assert "\n" not in str(caught.value)


MODEL_FILE = """
nc: 3
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2f, [32, True]]
head:
  - [[2], 1, Detect, [nc]]
"""


def test_a_model_file_of_ones_own(project):
    (project / "mine.yaml").write_text(MODEL_FILE)
    built = build("mine.yaml")
    assert (built.source, built.input_shapes) == ("ultralytics", ((1, 3, 640, 640),))
    assert [type(layer).__name__ for layer in built.model.model.model] == ["Conv", "Conv", "C2f", "Detect"]
    (project / "mine.yaml").write_text(f"{MODEL_FILE}simam: after c2f")
    assert build("mine.yaml").source == "ultralytics"
    assert build("yolov8n.yaml").model.model.yaml["scale"] == "n"


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("rules: [{block: C2f, after: output}]", ["is a recipe", "--recipe"]),
        (MODEL_FILE.replace("C2f", "SimAM"), ["contains SimAM", "convert"]),
        ("a: 1", ["cannot build the model"]),
        ("{", ["cannot be read as YAML"]),
    ],
)
def test_a_yaml_of_something_else(content, facts, project):
    (project / "mine.yaml").write_text(content)
    with pytest.raises(ModelError, match=says("mine.yaml", *facts)):
        build("mine.yaml")


def test_missing_ultralytics_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("simam_inject.errors.find_spec", lambda name: None)
    monkeypatch.setattr("simam_inject.zoo.names.list_ultralytics", lambda: ())
    with pytest.raises(ModelError, match=r"yolov8n.*AGPL-3.0.*pip install 'simam_inject\[ultralytics\]'"):
        build("yolov8n")
