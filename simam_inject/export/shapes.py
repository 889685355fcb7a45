"""Which sizes of the inputs may vary, in the words of `torch.export`, and other inputs to try them on."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from simam_inject.dataflow.example import Example
from simam_inject.errors import describe_exception
from simam_inject.export.records import ExportError
from simam_inject.nested import map_nested

CHOICES = ("batch", "size")
_NAMES = ("batch", "channels", "height", "width", "depth")
_STEP = 32
"""The stride of most networks: they accept a size that differs by this."""


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
        return {axis: _NAMES[axis] if named else Dim.DYNAMIC for axis in _varying(leaf, batch, dynamic)} or None

    arguments = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    return {name: map_nested(describe, value) for name, value in arguments.items()}


def widened(example: Example, dynamic: tuple[str, ...]) -> Example:
    """The example with a batch of at least two where the batch may vary: `torch.export` takes a one for a constant.

    The batch becomes a size that no other input has, so that those which have it vary with it.
    """
    if "batch" not in dynamic or _batch_of(example) != 1:
        return example
    others = {tensor.shape[:1] for tensor in example.tensors if not _is_map(tensor)}
    batch = next(number for number in itertools.count(2) if (number,) not in others)
    return _changed(example, lambda leaf: _resize(leaf, 0, batch) if _is_map(leaf) and len(leaf) == 1 else leaf)


def other_example(model: nn.Module, example: Example, dynamic: tuple[str, ...]) -> Example:
    """The example at other sizes that the model takes: one more sample, images larger by a stride, or else doubled.

    Raises:
        ExportError: the model takes neither.
    """
    batch, reason = _batch_of(example), ""
    for lengthen in (lambda length: length + _STEP, lambda length: 2 * length):
        other = _changed(example, partial(_enlarged, batch=batch, dynamic=dynamic, lengthen=lengthen))
        try:
            other.run(model)
        except Exception as error:
            reason = describe_exception(error)
        else:
            return other
    raise ExportError(f"the model accepts no other input size than the example's ({reason}); use dynamic='batch'")


def _enlarged(leaf: Any, batch: int | None, dynamic: tuple[str, ...], lengthen: Callable[[int], int]) -> Any:
    for axis in _varying(leaf, batch, dynamic):
        leaf = _resize(leaf, axis, lengthen(leaf.shape[axis]) if axis else len(leaf) + 1)
    return leaf


def _varying(leaf: Any, batch: int | None, dynamic: tuple[str, ...]) -> list[int]:
    """The dimensions of an input that may vary."""
    has_batch = isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and len(leaf) == batch
    axes = [0] if has_batch and "batch" in dynamic else []
    return [*axes, *range(2, leaf.dim())] if "size" in dynamic and _is_map(leaf) else axes


def _is_map(leaf: Any) -> bool:
    """An input with a batch, channels and at least one spatial dimension."""
    return isinstance(leaf, torch.Tensor) and 3 <= leaf.dim() <= 5


def _batch_of(example: Example) -> int | None:
    return next((len(tensor) for tensor in example.tensors if _is_map(tensor)), None)


def _resize(leaf: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    """By nearest neighbours."""
    return leaf.index_select(axis, torch.arange(length, device=leaf.device) * leaf.shape[axis] // length)


def _changed(example: Example, change: Callable[[Any], Any]) -> Example:
    return Example(*map_nested(change, (example.args, example.kwargs)))
