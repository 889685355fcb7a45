"""Operations on tensors without data: those that torch works out in Python for up to a millisecond, at once.

Most time of recording a vision transformer or a network with `hardswish` would be that of torch's decompositions, which
find shape and dtype of a result by tens of operations. Here only what is plain in every respect is answered: dense
tensors in one dtype. Everything else is up to torch, and so is every error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from simam_inject.dataflow.twin import to_meta
from simam_inject.dataflow.values import Shape
from simam_inject.nested import map_nested, tensors_in

_ACTIVATIONS = {F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu, F.relu6}
_ACTIVATIONS |= {F.selu, F.softplus, torch.relu, Tensor.relu}
_OF_TWO = {torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div}
_KNOWN = _ACTIVATIONS | _OF_TWO | {F.layer_norm, F.group_norm, F.linear, F.adaptive_avg_pool2d}
_IN_PLACE = re.compile(r"[^_]_$|^__(i\w+|setitem)__$")


def computed_at_once(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> Tensor | None:
    """What an operation returns, if that is easy to tell; None otherwise.

    Args:
        func: a torch function, with its args and kwargs.
        tensors: all tensors among these, without data.
    """
    if func is F.batch_norm:
        return to_meta(tensors[0])
    if func not in _KNOWN or not args or not all(map(_is_plain, tensors)):
        return None
    first, *others = tensors
    shapes = [tuple(other.shape) for other in others]
    if args[0] is not first or any(other.dtype != first.dtype for other in others):
        return None
    options = (*args[1:], *kwargs.values())
    if func in _ACTIVATIONS and all(isinstance(each, (bool, float, str)) for each in options):  # no 1 for True
        return torch.relu_(first) if any(each is True for each in options) else to_meta(first)
    is_like_first = False
    if func in _OF_TWO and len(args) == 2 and not kwargs:
        is_number = isinstance(args[1], (int, float)) and not others
        is_like_first = is_number or (len(others) == 1 and _is_broadcast(shapes[0], tuple(first.shape)))
    elif func is F.linear and len(args) > 1 and first.dim() > 1:
        weight, *bias = shapes or [()]
        if len(weight) == 2 and weight[1] == first.shape[-1] and bias in ([], [weight[:1]]):
            return torch.empty((*first.shape[:-1], weight[0]), dtype=first.dtype, device="meta")
    elif func is F.adaptive_avg_pool2d and args[1:] in ((1,), ((1, 1),)) and first.dim() in (3, 4) and first.numel():
        return torch.empty((*first.shape[:-2], 1, 1), dtype=first.dtype, device="meta")
    elif func in (F.layer_norm, F.group_norm) and len(args) > 1:
        is_like_first = _can_normalize(func, args[1], tuple(first.shape), shapes)
    return to_meta(first) if is_like_first else None


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.is_contiguous()


def _is_broadcast(small: Shape, large: Shape) -> bool:
    """A tensor of the small shape takes the large one."""
    ends = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(length in (1, other) for length, other in ends)


def _can_normalize(func: Callable[..., Any], how: Any, shape: Shape, weights: list[Shape]) -> bool:
    """A layer norm over these dimensions, or a group norm of so many groups, takes the shapes."""
    if func is F.layer_norm:
        normalized = tuple(how)
        return bool(normalized) and shape[-len(normalized) :] == normalized and set(weights) <= {normalized}
    channels = shape[1:2]
    has_groups = len(shape) > 2 and channels[0] % how == 0 and shape[0] * channels[0] > how
    return has_groups and set(weights) <= {channels}


def without_data(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an operation on constants with data and on tensors without: all of them without."""
    written = kwargs.get("out", args[0] if _IN_PLACE.search(getattr(func, "__name__", "")) else None)
    if any(not tensor.is_meta for _, tensor in tensors_in(written)):
        raise RuntimeError("a constant is overwritten by a tensor without data")
    new_args, new_kwargs = map_nested(_as_meta, (tuple(args), dict(kwargs)))
    return new_args, new_kwargs


def _as_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) and leaf.dim() else leaf
