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
    raise ExportError(f"dynamic must be True (batch and size), False, 'batch' or 'size'; found {dynamic!r}")


def is_map(leaf: Any) -> bool:
    """An input with a batch, channels and at least one spatial dimension."""
    return isinstance(leaf, torch.Tensor) and 3 <= leaf.dim() <= 5


def dynamic_shapes(model: nn.Module, example: Example, dynamic: tuple[str, ...], *, named: bool = False) -> Any:
    """The `dynamic_shapes` of `torch.export.export`; None if all sizes are fixed.

    Args:
        named: names for the sizes, as `torch.onnx.export` writes them into the file.
    """
    if not dynamic:
        return None

    def describe(leaf: Any) -> Any:
        if not is_map(leaf):
            return None
        axes = ([0] if "batch" in dynamic else []) + (list(range(2, leaf.dim())) if "size" in dynamic else [])
        return {axis: _AXES[axis] if named else Dim.DYNAMIC for axis in axes}

    arguments = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    return {name: map_nested(describe, value) for name, value in arguments.items()}


def widened(example: Example, dynamic: tuple[str, ...]) -> Example:
    """The example with a batch of at least two where the batch may vary: `torch.export` takes a one for a constant."""
    maps = [tensor for tensor in example.tensors if is_map(tensor)]
    if "batch" not in dynamic or not maps or maps[0].shape[0] > 1:
        return example
    batch = maps[0].shape[0]

    def repeat(leaf: Any) -> Any:
        has_batch = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch and is_map(leaf)
        return leaf.repeat(2, *[1] * (leaf.dim() - 1)) if has_batch else leaf

    return Example(*map_nested(repeat, (example.args, example.kwargs)))


def other_examples(example: Example, dynamic: tuple[str, ...]) -> list[Example]:
    """Inputs of other sizes, to be tried in turn: the first that the model itself takes proves that sizes vary."""
    grown: list[Callable[[int], int]] = [lambda n: n + _STEP, lambda n: 2 * n] if "size" in dynamic else [lambda n: n]
    more = 1 if "batch" in dynamic else 0
    return [_resized(example, more, grow) for grow in grown] if dynamic else []


def _resized(example: Example, more: int, grow: Callable[[int], int]) -> Example:
    noise = torch.Generator().manual_seed(2)

    def resize(leaf: Any) -> Any:
        if not is_map(leaf) or not leaf.is_floating_point():
            return leaf
        shape = (leaf.shape[0] + more, leaf.shape[1], *(grow(length) for length in leaf.shape[2:]))
        # Noise of the example's own spread: what the network sees must stay of the kind it was given.
        wide = leaf.float()
        if wide.min() >= 0:
            return (torch.rand(shape, generator=noise) * wide.max().item()).to(leaf)
        return (torch.randn(shape, generator=noise) * wide.std().item()).to(leaf)

    return Example(*map_nested(resize, (example.args, example.kwargs)))
