"""Kinds of operations: one word for an operation, whether written as a module, a function, a method or an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from simam_inject.kinds import FAMILIES, KINDS, kind_of

_kind_of = lru_cache(maxsize=4096)(kind_of)
_LAYERS = frozenset().union(*FAMILIES.values())
_JOINS = frozenset({"add", "sub", "mul", "cat"})  # of several tensors
_PARAMETERS = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "deform_conv": (
        *("input", "weight", "offset", "mask", "bias", "stride_h", "stride_w", "pad_h", "pad_w"),
        *("dilation_h", "dilation_w", "groups"),
    ),
    "max_pool": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool": ("input", "kernel_size", "stride", "padding"),
}
"""Of the functions of these kinds."""
UPSAMPLING = frozenset({"interpolate", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "pixel_shuffle"})


def module_kind(module: nn.Module) -> str:
    """Kind of a leaf module: of the class of torch that it is or derives from, else of its own class."""
    kind = type(module)
    ours = (_kind_of(base.__name__) for base in kind.__mro__ if base.__module__.startswith("torch.nn.modules."))
    return next((name for name in ours if name in KINDS), _kind_of(kind.__name__))


def leaf_kind(
    module: nn.Module, computed: Sequence[tuple[str, dict[str, Any]]], inputs: int
) -> tuple[str, dict[str, Any]]:
    """Kind of a module without children, and facts of the convolution that its forward calls.

    With parameters, one convolution, and no norm, activation or pooling, it is a convolution, whatever its class. One
    whose forward is one activation is that activation, unless its class name is a listed kind. One that joins several
    tensors by one operation, perhaps before an activation, counts as that operation, independent of its class.

    Args:
        computed: kind and facts of each operation of its forward.
        inputs: number of tensors that it is given.
    """
    layers = [(kind, facts) for kind, facts in computed if kind in _LAYERS]
    deform = [facts for kind, facts in layers if kind == "deform_conv2d"]
    if deform and len(layers) > 1:  # the other one computes its offsets
        layers = [("conv2d", deform[0])]
    is_conv = len(layers) == 1 and layers[0][0] in FAMILIES["conv"] and bool(module._parameters)
    kinds = [kind for kind, _ in computed]
    is_act = len(kinds) == 1 and kinds[0] in FAMILIES["act"] and module_kind(module) not in KINDS
    is_join = inputs > 1 and {*kinds[:1]} <= _JOINS and {*kinds[1:]} <= FAMILIES["act"]
    if computed and (is_act or is_join):
        return computed[0]
    is_own = not isinstance(module, _ConvNd) or module_kind(module) not in KINDS
    return layers[0] if is_conv and is_own else (module_kind(module), {})


def function_name(function: Callable[..., Any]) -> str:
    """Name of a torch function or method as a `TorchFunctionMode` sees it; of a property, the property's name."""
    name: str = getattr(function, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return name.strip("_")


def function_kind(function: Callable[..., Any]) -> str:
    """Kind of a torch function, method or property."""
    return _kind_of(function_name(function))


def conv_facts(module: nn.Module) -> dict[str, Any]:
    """Kernel, stride, dilation, groups and depthwise of a real convolution or pooling; {} for any other module.

    Attributes such as `kernel_size` on a wrapper do not count: the convolution inside is a site of its own.
    """
    if not isinstance(module, (_ConvNd, _AvgPoolNd, _MaxPoolNd)):
        return {}
    bases = (base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules."))
    rank = next((int(name[-2]) for name in bases if name[-2:-1].isdigit()), 2)
    facts: dict[str, Any] = {}
    for fact, attribute in (("kernel", "kernel_size"), ("stride", "stride"), ("dilation", "dilation")):
        value = getattr(module, attribute, None)
        value = (value,) * rank if isinstance(value, int) else value
        if isinstance(value, (tuple, list)) and value and all(isinstance(length, int) for length in value):
            facts[fact] = tuple(value)
    if isinstance(module, _ConvNd):
        facts["groups"] = module.groups
        facts["depthwise"] = module.groups == module.in_channels > 1
    return facts


def function_facts(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same facts of a convolution or pooling that is called as a function; {} for anything else."""
    name = function_name(function)
    kind, rank = name[:-2], name[-2:-1]
    if kind not in _PARAMETERS or not rank.isdigit():
        return {}
    given = {"groups": 1, **dict(zip(_PARAMETERS[kind], args, strict=False)), **kwargs}
    weight, kernel, facts = given.get("weight"), given.get("kernel_size"), dict[str, Any]()
    if isinstance(weight, Tensor):
        kernel, groups = tuple(weight.shape[2:]), given["groups"]
        each = weight.shape[0] // groups if kind == "conv_transpose" else weight.shape[1]
        facts |= {"groups": groups, "depthwise": groups > 1 and each == 1}
    usual = {"kernel": kernel, "stride": kernel if weight is None else 1, "dilation": 1}
    for fact in ("kernel", "stride", *(["dilation"] if kind != "avg_pool" else [])):
        value = given.get(fact) or [given[name] for name in (f"{fact}_h", f"{fact}_w") if name in given] or usual[fact]
        lengths = value if isinstance(value, (tuple, list)) else [value]
        facts[fact] = tuple(lengths) * (int(rank) if len(lengths) == 1 else 1)
    return facts
