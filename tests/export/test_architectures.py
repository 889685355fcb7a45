"""Six architectures, fixed and dynamic, at two sizes: ONNX Runtime is eager to 1e-5, and every site is in the graph."""

import pytest
import timm
import torch
import torchvision

from simam_inject import inject, injected
from simam_inject.export import export

MODELS = {
    "resnet50": (torchvision.models.resnet50, "paper", 16),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, "paper", 17),
    "densenet121": (torchvision.models.densenet121, "after _denselayer.conv2", 58),
    "shufflenet_v2": (torchvision.models.shufflenet_v2_x0_5, "after invertedresidual", 16),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), "after invertedresidual", 15),
    "convnext_atto": (lambda: timm.create_model("convnext_atto"), "after convnextblock.conv_dw", 12),
}


def awake(model):
    """Scales that start at zero or at 1e-6 would hide what a branch computes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.0)
    return model


def build(name):
    torch.manual_seed(0)
    factory, recipe, count = MODELS[name]
    model = inject(awake(factory()), recipe, example_inputs=torch.rand(1, 3, 96, 96), verify=False)
    return model, count


def images(side):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.long
@pytest.mark.parametrize("side", [96, 128])
@pytest.mark.parametrize("name", MODELS)
def test_a_fixed_file_is_the_model_at_its_size(name, side, tmp_path):
    model, count = build(name)
    report = export(model, tmp_path / "net.onnx", example_inputs=images(side))
    assert report.live == len(injected(model)) == count
    assert report.is_decisive
    assert report.difference < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".torchscript"])
@pytest.mark.parametrize("name", MODELS)
def test_a_dynamic_file_is_the_model_at_two_sizes(name, suffix, tmp_path):
    model, count = build(name)
    report = export(model, tmp_path / f"net{suffix}", example_inputs=images(96), dynamic=True)
    assert report.live == count
    assert [comparison.shapes for comparison in report.comparisons] == [((2, 3, 96, 96),), ((3, 3, 128, 128),)]
    assert report.is_decisive
    assert report.difference < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_detector_is_exported_with_every_site(dynamic, tmp_path):
    yolo = pytest.importorskip("ultralytics").YOLO("yolov8n.yaml")
    inject(yolo, "after c2f", example_inputs=images(96), verify=False)
    report = export(yolo, tmp_path / "net.onnx", example_inputs=images(96), dynamic=dynamic)
    assert report.live == 8
    assert report.difference < 1e-5
