"""Which sizes of the inputs may vary, in the words of `torch.export`, and other inputs to try them on."""

from __future__ import annotations

import inspect
import itertools
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


def dynamic_shapes(model: nn.Module, example: Example, dynamic: tuple[str, ...], *, named: bool = False) -> Any:
    """The `dynamic_shapes` of `torch.export.export`; None if all sizes are fixed.

    Args:
        named: names for the sizes, as `torch.onnx.export` writes them into the file.
    """
    if not dynamic:
        return None
    batch = _batch_of(example)

    def describe(leaf: Any) -> Any:
        axes = [0] if "batch" in dynamic and _has_batch(leaf, batch) else []
        axes += range(2, leaf.dim()) if "size" in dynamic and _is_map(leaf) else []
        return {axis: _AXES[axis] if named else Dim.DYNAMIC for axis in axes} or None

    arguments = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    return {name: map_nested(describe, value) for name, value in arguments.items()}


def widened(example: Example, dynamic: tuple[str, ...]) -> Example:
    """The example with a batch of at least two where the batch may vary: `torch.export` takes a one for a constant.

    The batch becomes a size that no other input has, so that those which have it vary with it.
    """
    if "batch" not in dynamic or _batch_of(example) != 1:
        return example
    others = {tensor.shape[:1] for tensor in example.tensors if not _is_map(tensor)}
    more = next(number for number in itertools.count(1) if (number + 1,) not in others)
    return _changed(example, lambda leaf: _with_samples(leaf, more) if _is_map(leaf) and len(leaf) == 1 else leaf)


def other_examples(example: Example, dynamic: tuple[str, ...]) -> list[Example]:
    """Inputs of other sizes, to be tried in turn: the first that the model itself takes proves that sizes vary."""
    batch = _batch_of(example)

    def resized(grow: Callable[[int], int]) -> Example:
        def resize(leaf: Any) -> Any:
            for dim in range(2, leaf.dim()) if "size" in dynamic and _is_map(leaf) else ():
                length = leaf.shape[dim]
                nearest = torch.arange(grow(length), device=leaf.device) * length // grow(length)
                leaf = leaf.index_select(dim, nearest)
            return _with_samples(leaf, 1) if "batch" in dynamic and _has_batch(leaf, batch) else leaf

        return _changed(example, resize)

    return [resized(lambda length: length + _STEP), resized(lambda length: 2 * length)]


def _is_map(leaf: Any) -> bool:
    """An input with a batch, channels and at least one spatial dimension."""
    return isinstance(leaf, torch.Tensor) and 3 <= leaf.dim() <= 5


def _batch_of(example: Example) -> int | None:
    return next((len(tensor) for tensor in example.tensors if _is_map(tensor)), None)


def _has_batch(leaf: Any, batch: int | None) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and len(leaf) == batch


def _with_samples(leaf: torch.Tensor, more: int) -> torch.Tensor:
    """With mirrored copies of the first sample."""
    return torch.cat([leaf, *[leaf[:1].flip(-1)] * more])


def _changed(example: Example, change: Callable[[Any], Any]) -> Example:
    return Example(*map_nested(change, (example.args, example.kwargs)))
