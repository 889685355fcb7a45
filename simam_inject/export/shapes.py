"""Which sizes of the inputs may vary: examples of several sizes, and the dimensions in which they differ."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.errors import describe_exception
from simam_inject.export.records import ExportError
from simam_inject.nested import map_nested

CHOICES = ("batch", "size")
NAMES = ("batch", "channels", "height", "width", "depth")
"""Of the dimensions of an input, in a file that has names for them."""
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


def vary(model: nn.Module, example: Example, dynamic: tuple[str, ...]) -> tuple[Example, ...]:
    """The example, and if sizes may vary, a second one that the model accepts in which all of these are larger.

    The second has one more sample, and images larger by a stride, or else doubled. Where the batch may vary, the first
    has at least two samples, since `torch.export` takes a one for a constant.

    Raises:
        ExportError: the model accepts no larger images.
    """
    if not dynamic:
        return (example,)
    if "batch" in dynamic and _batch_of(example) == 1:
        example = _with_more_samples(example)
    batch, reason = _batch_of(example), ""
    for lengthen in (lambda length: length + _STEP, lambda length: 2 * length):

        def enlarge(tensor: Tensor, lengthen: Callable[[int], int] = lengthen) -> Tensor:
            if "batch" in dynamic and tensor.dim() and len(tensor) == batch:
                tensor = _resize(tensor, 0, batch + 1)
            for axis in range(2, tensor.dim()) if "size" in dynamic and _is_map(tensor) else ():
                tensor = _resize(tensor, axis, lengthen(tensor.shape[axis]))
            return tensor

        other = _changed(example, enlarge)
        try:
            other.run(model)
        except Exception as error:
            reason = describe_exception(error)
        else:
            return example, other
    raise ExportError(f"the model accepts no other input size than the example's ({reason}); use dynamic='batch'")


def dynamic_shapes(model: nn.Module, examples: Sequence[Example], dims: Sequence[Any]) -> Any:
    """The `dynamic_shapes` of `torch.export.export`: the dimensions in which two examples differ; None for one example.

    Args:
        dims: what to call each dimension: a name, or a `torch.export.Dim`.
    """
    if len(examples) == 1:
        return None
    example, other = examples
    sizes = {id(one): two.shape for one, two in zip(example.tensors, other.tensors, strict=True)}

    def describe(leaf: Any) -> Any:
        lengths = zip(leaf.shape, sizes[id(leaf)], strict=True) if isinstance(leaf, Tensor) else ()
        return {axis: dims[axis] for axis, (one, two) in enumerate(lengths) if one != two} or None

    arguments = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    return {name: map_nested(describe, value) for name, value in arguments.items()}


def _with_more_samples(example: Example) -> Example:
    """The example with a batch of two, or of more where another input has that length: it would vary with the batch."""
    others = {len(tensor) for tensor in example.tensors if tensor.dim() and not _is_map(tensor)}
    batch = next(number for number in itertools.count(2) if number not in others)
    return _changed(example, lambda one: _resize(one, 0, batch) if _is_map(one) and len(one) == 1 else one)


def _is_map(tensor: Tensor) -> bool:
    """An input with a batch, channels and at least one spatial dimension."""
    return 3 <= tensor.dim() <= 5


def _batch_of(example: Example) -> int:
    return next((len(tensor) for tensor in example.tensors if _is_map(tensor)), 0)


def _resize(tensor: Tensor, axis: int, length: int) -> Tensor:
    """By nearest neighbours."""
    return tensor.index_select(axis, torch.arange(length, device=tensor.device) * tensor.shape[axis] // length)


def _changed(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    def apply(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return Example(*map_nested(apply, (example.args, example.kwargs)))
