"""Models of libraries that the engine was not written against. Their packages are the extra `zoo`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from simam_inject.zoo import ZooModel

PACKAGES = ("segmentation_models_pytorch", "transformers", "monai")
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")
IMAGE, VOLUME = (1, 3, 64, 64), (1, 1, 16, 64, 64)


def is_installed() -> bool:
    """True if every package of the ring can be imported."""
    return all(importlib.util.find_spec(package) for package in PACKAGES)


def _segmentation(architecture: str, encoder: str) -> nn.Module:
    package = importlib.import_module("segmentation_models_pytorch")
    network: nn.Module = getattr(package, architecture)(encoder, encoder_weights=None)
    return network


def _transformer(name: str, **options: Any) -> nn.Module:
    package = importlib.import_module("transformers")
    network: nn.Module = getattr(package, f"{name}Model")(getattr(package, f"{name}Config")(**options))
    return network


def _volume(name: str, **options: Any) -> nn.Module:
    network: nn.Module = getattr(importlib.import_module("monai.networks.nets"), name)(spatial_dims=3, **options)
    return network


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        f"smp-{architecture}-{encoder}": (partial(_segmentation, architecture, encoder), IMAGE)
        for architecture in ("Unet", "DeepLabV3Plus", "FPN")
        for encoder in ENCODERS
    },
    "transformers-ResNet": (partial(_transformer, "ResNet", depths=[1, 1, 1, 1]), IMAGE),
    "transformers-ConvNext": (partial(_transformer, "ConvNext", depths=[1, 1, 2, 1]), IMAGE),
    "transformers-RegNet": (partial(_transformer, "RegNet", depths=[1, 1, 2, 1]), IMAGE),
    "transformers-MobileNetV2": (partial(_transformer, "MobileNetV2"), IMAGE),
    "transformers-DPT": (
        partial(_transformer, "DPT", image_size=64, num_hidden_layers=4, hidden_size=48, num_attention_heads=4),
        IMAGE,
    ),
    "monai-UNet": (
        partial(_volume, "UNet", in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2)),
        VOLUME,
    ),
    "monai-SegResNet": (partial(_volume, "SegResNet", init_filters=8), VOLUME),
}
"""Name -> (what builds it with random weights, shape of its input)."""


def build(name: str) -> ZooModel:
    """One model of the ring as the zoo would give it."""
    make, shape = MODELS[name]
    return ZooModel(name, make(), "second ring", "random weights", (shape,))
