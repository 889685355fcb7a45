"""Dynamic sizes: two examples, which show by what they differ in which dimensions of the inputs may vary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.errors import describe_exception
from simam_inject.export.report import ExportError
from simam_inject.nested import map_nested


def parse_dynamic(dynamic: bool | str) -> tuple[str, ...]:
    """Which sizes may vary: any of `batch` and `size`."""
    if isinstance(dynamic, bool):
        return ("batch", "size") if dynamic else ()
    if dynamic in ("batch", "size"):
        return (dynamic,)
    raise ExportError(f"dynamic must be True (batch and size), False, 'batch' or 'size'; found {dynamic!r}")


def vary(model: nn.Module, example: Example, dynamic: tuple[str, ...]) -> tuple[Example, ...]:
    """The example; if sizes may vary, followed by one that the model accepts in which all of these are larger.

    Where the batch may vary, the first has at least two samples: exporters take a one for a constant. An input
    with one number per sample then has a fixed length in the file.

    Raises:
        ExportError: the model accepts no larger images, or takes none.
    """
    batch = next((len(tensor) for tensor in example.tensors if _is_map(tensor)), 0)

    def resized(count: int, lengthen: Callable[[int], int]) -> Example:
        def resize(leaf: Any) -> Any:
            is_map = isinstance(leaf, Tensor) and _is_map(leaf)
            if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == batch and (is_map or batch > 1):
                leaf = _with_length(leaf, 0, count)
            for dim in range(2, leaf.dim()) if is_map else ():
                leaf = _with_length(leaf, dim, lengthen(leaf.shape[dim]))
            return leaf

        return Example(*map_nested(resize, (example.args, example.kwargs)))

    if not dynamic:
        return (example,)
    if not batch:
        raise ExportError(
            "no input has a batch, channels and spatial dimensions, so dynamic has no effect: leave it out"
        )
    count, reason = max(batch, 2) if "batch" in dynamic else batch, ""
    for lengthen in (lambda length: length + 32, lambda length: 2 * length) if "size" in dynamic else (int,):
        other = resized(count + ("batch" in dynamic), lengthen)
        try:
            other.run(model)
        except Exception as error:
            reason = describe_exception(error)
        else:
            return resized(count, int), other
    raise ExportError(f"the model accepts no other input size than the example's ({reason}); use dynamic='batch'")


def dynamic_shapes(model: nn.Module, examples: Sequence[Example], names: Sequence[Any]) -> dict[str, Any] | None:
    """The `dynamic_shapes` of `torch.export.export`: the dimensions in which two examples differ; None for one example.

    Args:
        names: what to call each dimension.
    """
    if len(examples) == 1:
        return None
    other = iter(examples[1].tensors)

    def differing(leaf: Any) -> Any:
        lengths = zip(leaf.shape, next(other).shape, strict=True) if isinstance(leaf, Tensor) else ()
        return {dim: names[dim] for dim, (one, two) in enumerate(lengths) if one != two}

    bound = inspect.signature(model.forward).bind(*examples[0].args, **examples[0].kwargs)
    return {name: map_nested(differing, value) for name, value in bound.arguments.items()}


def _is_map(tensor: Tensor) -> bool:
    """An input with a batch, channels and at least one spatial dimension."""
    return 3 <= tensor.dim() <= 5


def _with_length(tensor: Tensor, dim: int, length: int) -> Tensor:
    """The tensor, repeated along one dimension."""
    return tensor.index_select(dim, torch.arange(length, device=tensor.device) % tensor.shape[dim])
