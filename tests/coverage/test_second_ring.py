"""A second ring that the engine was not written against. Needs the extra `zoo`; run with `pytest -m zoo`."""

import importlib
import warnings

import pytest
import torch

from benchmarks.coverage.probes import randomise, run
from simam_inject import eject, inject, injected, verify
from simam_inject.verification.outputs import difference

pytestmark = pytest.mark.zoo
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")
EVERYTHING = {
    "version": 1,
    "rules": [
        {"block": "*", "before": "residual", "optional": True},
        {"path": "*", "after": {"op": "conv"}, "optional": True},
        {"block": "*", "after": "output", "optional": True},
    ],
}


def package(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def segmentation(architecture, encoder):
    return lambda: getattr(package("segmentation_models_pytorch"), architecture)(encoder, encoder_weights=None)


def transformer(name, **options):
    def build():
        library = package("transformers")
        return getattr(library, f"{name}Model")(getattr(library, f"{name}Config")(**options))

    return build


def volume(name, **options):
    return lambda: getattr(importlib.import_module(f"{package('monai').__name__}.networks.nets"), name)(**options)


MODELS = {
    **{
        f"smp:{architecture}:{encoder}": (segmentation(architecture, encoder), (1, 3, 64, 64), (2, 3, 128, 64))
        for architecture in ("Unet", "DeepLabV3Plus", "FPN")
        for encoder in ENCODERS
    },
    "transformers:ResNet": (transformer("ResNet", depths=[1, 1, 1, 1]), (1, 3, 64, 64), (2, 3, 96, 64)),
    "transformers:ConvNext": (transformer("ConvNext", depths=[1, 1, 2, 1]), (1, 3, 64, 64), (2, 3, 96, 64)),
    "transformers:RegNet": (transformer("RegNet", depths=[1, 1, 2, 1]), (1, 3, 64, 64), (2, 3, 96, 64)),
    "transformers:MobileNetV2": (transformer("MobileNetV2"), (1, 3, 64, 64), (2, 3, 96, 64)),
    "transformers:DPT": (
        transformer("DPT", image_size=64, num_hidden_layers=4, hidden_size=48, num_attention_heads=4),
        (1, 3, 64, 64),
        (2, 3, 64, 64),
    ),
    "monai:UNet": (
        volume("UNet", spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2)),
        (1, 1, 16, 16, 16),
        (2, 1, 24, 16, 32),
    ),
    "monai:SegResNet": (volume("SegResNet", spatial_dims=3, init_filters=8), (1, 1, 16, 16, 16), (2, 1, 24, 16, 32)),
}


@pytest.mark.parametrize("name", MODELS)
def test_second_ring(name):
    build, first, second = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build().eval()
        randomise(model)
        x, y = torch.rand(first), torch.rand(second)

        class Inputs:
            args = (x,)

        plain, classes = run(model, Inputs), [type(module) for module in model.modules()]
        inject(model, EVERYTHING, example_inputs=x)
        assert injected(model)
        assert verify(model, example_inputs=y).ok
        assert difference(run(model, Inputs), plain) is not None
        eject(model)
        assert [type(module) for module in model.modules()] == classes
        assert difference(run(model, Inputs), plain) is None
