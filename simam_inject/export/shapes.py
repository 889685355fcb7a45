"""Which sizes of the inputs may vary, in the words of `torch.export`, and other inputs to try them on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from simam_inject.dataflow.example import Example
from simam_inject.export.records import ExportError
from simam_inject.nested import map_nested

CHOICES = ("batch", "size")
_AXES = ("batch", "channels", "height", "width", "depth")
_STEP = 32
"""The stride of most networks: a size that differs by this is one that they take."""


def parse_dynamic(dynamic: bool | str) -> tuple[str, ...]:
    """`True` -> both, `False` -> none, or one of `CHOICES`.

    Raises:
        ExportError: anything else.
    """
    if isinstance(dynamic, bool):
        return CHOICES if dynamic else ()
    if dynamic in CHOICES:
        return (dynamic,)
    raise ExportError(f"dynamic is {dynamic!r}; allowed are True (batch and size), False, 'batch' and 'size'")


def dynamic_shapes(model: nn.Module, example: Example, dynamic: tuple[str, ...], *, named: bool = False) -> Any:
    """The `dynamic_shapes` of `torch.export.export`; None if all sizes are fixed.

    Args:
        named: names for the sizes, as `torch.onnx.export` writes them into the file.
    """
    if not dynamic:
        return None

    def describe(leaf: Any) -> Any:
        if not _is_map(leaf):
            return None
        axes = ([0] if "batch" in dynamic else []) + (list(range(2, leaf.dim())) if "size" in dynamic else [])
        return {axis: _AXES[axis] if named else Dim.DYNAMIC for axis in axes}

    arguments = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    return {name: map_nested(describe, value) for name, value in arguments.items()}


def widened(example: Example, dynamic: tuple[str, ...]) -> Example:
    """The example with a batch of at least two where the batch may vary: `torch.export` takes a one for a constant."""
    first = next((tensor for tensor in example.tensors if _is_map(tensor)), None)
    if "batch" not in dynamic or first is None or first.shape[0] > 1:
        return example
    return _resized(example, 1)


def other_examples(example: Example, dynamic: tuple[str, ...]) -> list[Example]:
    """Inputs of other sizes, to be tried in turn: the first that the model itself takes proves that sizes vary."""
    more = int("batch" in dynamic)
    if "size" not in dynamic:
        return [_resized(example, more)]
    return [_resized(example, more, lambda length: length + _STEP), _resized(example, more, lambda length: 2 * length)]


def _is_map(leaf: Any) -> bool:
    """An input with a batch, channels and at least one spatial dimension."""
    return isinstance(leaf, torch.Tensor) and 3 <= leaf.dim() <= 5


def _resized(example: Example, more: int, grow: Callable[[int], int] = int) -> Example:
    """The example with more samples (mirrored copies of the first) and with maps enlarged by the nearest value."""

    def resize(leaf: Any) -> Any:
        if not _is_map(leaf):
            return leaf
        for dim in range(2, leaf.dim()):
            length = leaf.shape[dim]
            leaf = leaf.index_select(dim, torch.arange(grow(length), device=leaf.device) * length // grow(length))
        return torch.cat([leaf, leaf[:more].flip(-1)])

    return Example(*map_nested(resize, (example.args, example.kwargs)))
