"""Names: which library has one, what is near to one that none has."""

import pytest
from torch import nn

from simam_inject.errors import ModelError
from simam_inject.zoo import build
from simam_inject.zoo.names import list_ultralytics


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


@pytest.mark.parametrize(
    ("name", "size"),
    [("ssdlite320_mobilenet_v3_large", 320), ("fasterrcnn_mobilenet_v3_large_fpn", 800)],
)
def test_detectors_take_a_list_at_the_size_they_resize_to(name, size):
    built = build(name)
    assert built.takes_list
    assert built.input_shapes == ((3, size, size),)


def test_a_torchvision_name_of_timm_too_is_told():
    assert build("resnet18").note == "random weights; resnet18 is torchvision's, timm has its own: timm:resnet18"
    assert build("torchvision:resnet18").note == "random weights"


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("timm:resnet18", 512)])
def test_num_classes_sizes_the_head(name, features):
    head = build(name, num_classes=7).model.fc
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (features, 7)


def test_every_scale_of_a_packaged_yaml_is_listed():
    names = list_ultralytics()
    assert {"yolov8n", "yolov8x-seg", "yoloe-11s-seg", "yolov9c", "yolov10n", "rtdetr-l", "yolov8n-rtdetr"} <= {*names}
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet5O", "no library has a model 'resnet5O'. Did you mean resnet50, timm:resnet50,"),
        ("timm:convnext_ato", "timm has no model 'convnext_ato'. Did you mean convnext_atto,"),
        ("timm:resnet50.a9_in1k", "timm:resnet50.a9_in1k: cannot build the model: RuntimeError: Invalid pretrained"),
        ("torchvision:resnet50d", "torchvision has no model 'resnet50d'. Did you mean resnet50,"),
        ("yolov8q", "no library has a model 'yolov8q'. Did you mean yolov8"),
        ("ultralytics:resnet50", "ultralytics has no model 'resnet50'."),
        (
            "yolov8nn.pt",
            "no such file: yolov8nn.pt, and ultralytics publishes no checkpoint of that name. Did you mean",
        ),
        ("qqqqqqqq", "no library has a model 'qqqqqqqq'. A model is named NAME, torchvision:NAME, timm:NAME,"),
        ("", "the model has no name."),
        ("net.py", "no such file: net.py"),
        ("mine.yaml", "ultralytics has no model 'mine'."),
    ],
)
def test_unknown_name_says_what_is_near(name, sentence):
    with pytest.raises(ModelError) as caught:
        build(name)
    assert str(caught.value).startswith(sentence)


def test_too_few_classes_are_refused():
    with pytest.raises(ModelError, match="num_classes is 0; it must be at least 1"):
        build("resnet18", num_classes=0)


def test_num_classes_of_a_yolo():
    assert build("yolov8n", num_classes=7).model.model.model[-1].nc == 7
    assert build("yolov8n-cls", num_classes=7).model.model.model[-1].linear.out_features == 7


def test_a_checkpoint_keeps_its_classes(project):
    (project / "mine.pt").touch()
    with pytest.raises(ModelError, match="changes with the data set, when training starts"):
        build("mine.pt", num_classes=7)


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
    ("content", "sentence"),
    [
        ("rules: [{block: C2f, after: output}]", "mine.yaml is a recipe, not a model: give the model and add --recipe"),
        (MODEL_FILE.replace("C2f", "SimAM"), "mine.yaml contains SimAM, which ultralytics does not have: convert"),
        ("a: 1", "ultralytics:mine.yaml: cannot build the model: "),
        ("{", "mine.yaml cannot be read as YAML: "),
    ],
)
def test_a_yaml_of_something_else(content, sentence, project):
    (project / "mine.yaml").write_text(content)
    with pytest.raises(ModelError) as caught:
        build("mine.yaml")
    assert str(caught.value).startswith(sentence)


def test_a_builder_that_refuses_num_classes_is_one_line():
    with pytest.raises(ModelError, match=r"^torchvision:raft_small: cannot build the model: TypeError: .*num_classes"):
        build("raft_small", num_classes=7)


def test_missing_ultralytics_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("simam_inject.zoo.yolo.find_spec", lambda name: None)
    monkeypatch.setattr("simam_inject.zoo.names.list_ultralytics", lambda: ())
    with pytest.raises(ModelError, match=r'pip install "simam_inject\[ultralytics\]"'):
        build("yolov8n")
