"""Five small networks, as anatomies: the shapes of architecture that rules speak of."""

from __future__ import annotations

from functools import cache

from simam_inject.dataflow.records import Anatomy
from tests.matching.sketch import Sketch

_FLAT = {"obstacle": "is not a feature map: its shape is (1, 512)", "shape": (1, 512), "reduction": None}
_NORM_ACT = ("Conv2dNormActivation", "Conv2dNormActivation", "ConvNormActivation", "Sequential")


@cache
def resnet() -> Anatomy:
    """Two stages of two Bottlenecks with a shared relu; the first of each has a downsample, layer2.0 a stride."""
    s = Sketch()
    s.chain("conv1 conv2d Conv2d 64 7 2", "bn1 batch_norm BatchNorm2d", "relu relu ReLU")
    s.op("maxpool", "max_pool", "MaxPool2d", kernel=3, stride=2)
    for stage, (width, stride) in enumerate([(64, 1), (128, 2)], start=1):
        with s.block(f"layer{stage}", "Sequential"):
            for index in range(2):
                with s.block(str(index), "Bottleneck"):
                    _bottleneck(s, width, 1 if index else stride, downsample=index == 0)
    s.op("avgpool", "adaptive_avg_pool", "AdaptiveAvgPool2d", size=1)
    s.op("flatten", "flatten", **_FLAT)
    s.op("fc", "linear", "Linear", **_FLAT)
    return s.anatomy()


def _bottleneck(s: Sketch, width: int, stride: int, downsample: bool) -> None:
    given, given_local = s.value, s.local
    branch = s.chain(
        f"conv1 conv2d Conv2d {width} 1", "bn1 batch_norm BatchNorm2d", "relu relu ReLU",
        f"conv2 conv2d Conv2d {width} 3 {stride}", "bn2 batch_norm BatchNorm2d", "relu[2] relu ReLU",
        f"conv3 conv2d Conv2d {width * 4} 1", "bn3 batch_norm BatchNorm2d",
    )  # fmt: skip
    if downsample:
        s.value, s.local = given, given_local
        with s.block("downsample", "Sequential"):
            s.chain(f"0 conv2d Conv2d {width * 4} 1 {stride}", "1 batch_norm BatchNorm2d")
        s.join(branch, s.local, s.value)
    else:
        s.join(branch)
    s.op("relu[3]", "relu", "ReLU")


@cache
def yolo() -> Anatomy:
    """Conv; C2f with two Bottlenecks, of which one has a shortcut; SPPF, which calls one pooling thrice; a head."""
    s = Sketch()
    with s.block("model", "Sequential"):
        _conv(s, "0", 16, 3, 2)
        with s.block("1", "C2f", "C2f", "CSP"):
            _conv(s, "cv1", 16, 1)
            first, first_local = s.value, s.local
            for index in range(2):
                with s.block(f"m.{index}", "Bottleneck"):
                    _conv(s, "cv1", 16)
                    _conv(s, "cv2", 16)
                    if index == 0:
                        s.join(s.local)
            last = s.local
            s.op("cat", "cat", channels=32, reads=(first, s.value))
            s.edit("model.1.cat", operands=(first_local, last))
            _conv(s, "cv2", 32, 1)
        with s.block("2", "SPPF"):
            _conv(s, "cv1", 16, 1)
            pools = [s.value, *(s.op(name, "max_pool", "MaxPool2d", kernel=5) for name in ("m", "m[2]", "m[3]"))]
            s.op("cat", "cat", channels=64, reads=tuple(pools))
            _conv(s, "cv2", 32, 1)
        tensors = {"obstacle": "returns a tuple with 2 tensors, not a feature map", "shape": None, "reduction": None}
        with s.block("3", "Detect", **tensors):
            _conv(s, "cv2.0", 64)
    s.edit("model", **tensors)
    return s.anatomy()


def _conv(s: Sketch, name: str, channels: int, kernel: int = 3, stride: int = 1) -> None:
    """A Conv block as YOLO has it: conv, bn, act."""
    with s.block(name, "Conv"):
        s.chain(f"conv conv2d Conv2d {channels} {kernel} {stride}", "bn batch_norm BatchNorm2d", "act silu SiLU")


@cache
def mobile() -> Anatomy:
    """Two inverted residuals of nested blocks; the second has a skip and a squeeze-excite with 1x1 maps."""
    s = Sketch()
    with s.block("features", "Sequential"):
        for index in range(2):
            with s.block(str(index), "InvertedResidual"):
                with s.block("conv", "Sequential"):
                    with s.block("0", *_NORM_ACT):
                        s.chain("0 conv2d Conv2d 12 1", "1 batch_norm BatchNorm2d", "2 relu6 ReLU6")
                    with s.block("1", *_NORM_ACT):
                        s.chain(f"0 conv2d Conv2d 12 3 {2 - index} 12", "1 batch_norm BatchNorm2d", "2 relu6 ReLU6")
                    if index == 1:
                        _squeeze_excite(s)
                    s.chain("2 conv2d Conv2d 3 1", "3 batch_norm BatchNorm2d")
                if index == 1:
                    s.join("features.1.conv")
    return s.anatomy()


def _squeeze_excite(s: Sketch) -> None:
    gated = s.value
    with s.block("se", "SqueezeExcitation"):
        s.op("avgpool", "adaptive_avg_pool", "AdaptiveAvgPool2d", size=1)
        s.chain("fc1 conv2d Conv2d 4 1", "relu relu ReLU", "fc2 conv2d Conv2d 12 1")
        s.op("mul", "mul", reads=(s.value, gated), size=32)


@cache
def convnext() -> Anatomy:
    """A block whose inside is channels last after its depthwise conv; and an auxiliary head that never ran."""
    s = Sketch(channels=24)
    with s.block("stages.0", "ConvNeXtStage"), s.block("blocks.0", "ConvNeXtBlock"):
        s.op("conv_dw", "conv2d", "Conv2d", kernel=7, groups=24)
        s.channel_dim = -1
        s.chain("norm layer_norm LayerNorm", "mlp.fc1 linear Linear 96", "mlp.act gelu GELU")
        s.op("mlp.fc2", "linear", "Linear", 24)
        branch = s.op("mul", "mul")
        s.channel_dim = 1
        s.join(branch)
    never = {"runs": 0, "obstacle": "never ran in the example forward", "shape": None, "reduction": None, "reads": ()}
    s.op("aux", "conv2d", "Conv2d", kernel=1, **never)
    return s.anatomy()


@cache
def plain() -> Anatomy:
    """No blocks: two convs with a relu between, a gate that makes a fork, a 1x1 conv."""
    s = Sketch()
    s.chain("conv_a conv2d Conv2d 8 3", "relu relu ReLU", "conv_b conv2d Conv2d 8 3")
    fork = s.value
    gate = s.op("sigmoid", "sigmoid")
    s.op("mul", "mul", reads=(fork, gate))
    s.op("conv_c", "conv2d", "Conv2d", kernel=1)
    return s.anatomy()


NETWORKS = {"resnet": resnet, "yolo": yolo, "mobile": mobile, "convnext": convnext, "plain": plain}
