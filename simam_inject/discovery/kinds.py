"""Kinds of operations: one word for an operation, whether written as a module, a function, a method or an operator."""

from __future__ import annotations

import re
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_MODULE_KINDS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.ConvTranspose1d,), "conv_transpose1d"),
    ((nn.ConvTranspose2d,), "conv_transpose2d"),
    ((nn.ConvTranspose3d,), "conv_transpose3d"),
    ((nn.Conv1d, nn.LazyConv1d), "conv1d"),
    ((nn.Conv2d, nn.LazyConv2d), "conv2d"),
    ((nn.Conv3d, nn.LazyConv3d), "conv3d"),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "instance_norm"),
    ((_BatchNorm,), "batch_norm"),
    ((nn.GroupNorm,), "group_norm"),
    ((nn.LayerNorm,), "layer_norm"),
    ((nn.Linear,), "linear"),
    ((nn.Identity,), "identity"),
    ((nn.Flatten,), "flatten"),
    ((nn.Upsample,), "interpolate"),
    ((nn.SiLU,), "silu"),
    ((nn.ReLU6,), "relu6"),
    ((nn.PReLU,), "prelu"),
)
_NAMES = {
    "swish": "silu",
    "concat": "cat",
    "concatenate": "cat",
    "upsample": "interpolate",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "multiply": "mul",
    "truediv": "div",
    "itruediv": "div",
    "batch_norm2d": "batch_norm",
    "frozen_batch_norm": "batch_norm",
    "group_norm1": "group_norm",
    "hard_swish": "hardswish",
    "hard_sigmoid": "hardsigmoid",
    "leaky_re_lu": "leaky_relu",
    "gelutanh": "gelu",
    "gelu_tanh": "gelu",
    "quick_gelu": "gelu",
    "hard_mish": "mish",
    "batch_norm_act": "batch_norm",
    "frozen_batch_norm_act": "batch_norm",
    "log_sigmoid": "logsigmoid",
    "zero_pad": "pad",
}
TRANSPARENT = frozenset({"identity", "dropout", "drop_path", "getitem", "contiguous", "clone", "dropblock"})
"""Kinds that a chain of operations looks through: in eval mode they pass their input on."""


def module_kind(module: nn.Module) -> str:
    """Kind of a leaf module, from its class where torch knows it, else from the class name in snake case."""
    for classes, kind in _MODULE_KINDS:
        if isinstance(module, classes):
            return kind
    return _from_name(type(module).__name__)


def node_kind(node: fx.Node) -> str:
    """Kind of a call_function, call_method or get_attr node."""
    if node.op == "call_method":
        return _from_name(str(node.target))
    return _from_name(getattr(node.target, "__name__", str(node.target)))


def _from_name(name: str) -> str:
    name = name.strip("_")
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    snake = {"re_lu": "relu", "re_lu6": "relu6", "si_lu": "silu", "ge_lu": "gelu", "p_relu": "prelu"}.get(snake, snake)
    snake = re.sub(r"_?([123])d$", r"\1d", snake.removesuffix("_with_indices"))
    if not snake.startswith(("conv", "deform_conv")):
        snake = re.sub(r"([a-z])[123]d$", r"\1", snake)
    return _NAMES.get(snake, snake)


def conv_facts(module: nn.Module) -> dict[str, Any]:
    """Kernel, stride, dilation, groups and depthwise of a conv or pooling module; {} for others."""
    facts: dict[str, Any] = {}
    for fact, attribute in (("kernel", "kernel_size"), ("stride", "stride"), ("dilation", "dilation")):
        value = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool):
            value = (value, value)
        if isinstance(value, (tuple, list)) and value and all(isinstance(length, int) for length in value):
            facts[fact] = tuple(value)
    if isinstance(module, _ConvNd):
        facts["groups"] = module.groups
        facts["depthwise"] = module.groups == module.in_channels > 1
    return facts
