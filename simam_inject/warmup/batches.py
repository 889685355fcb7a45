"""Batches of whatever loader, as arguments of one forward."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.errors import ModelError, describe_exception
from simam_inject.nested import map_nested, tensors_in

_IMAGES = ("img", "image", "images", "input", "inputs", "pixel_values", "x")
"""Keys under which dicts of data sets keep their images; ultralytics has the first."""


def readable_twice(batches: Any, passes: int) -> Iterable[Any]:
    """The batches as something to iterate over so many times: what can be read only once is kept in a list.

    Raises:
        ModelError: they cannot be iterated over.
    """
    if isinstance(batches, Tensor):
        return [batches]
    if isinstance(batches, (str, bytes, Mapping)) or not isinstance(batches, Iterable):
        raise ModelError(
            f"batches is a {type(batches).__name__}; give a DataLoader, an iterable of tensors or of (input, target) "
            "pairs, or one tensor; for a YOLO object also the YAML file of its data set"
        )
    return list(batches) if passes > 1 and iter(batches) is batches else batches


def run_batches(network: nn.Module, batches: Iterable[Any], description: str) -> Iterator[int]:
    """Run the network on each batch in turn; yields the index of each batch that was run.

    Raises:
        ModelError: no batch is given, or the network cannot run one.
    """
    place = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    count = 0
    for index, batch in enumerate(_shown(batches, description)):
        args, kwargs = _arguments(network, batch, index)
        args, kwargs = map_nested(lambda leaf: _placed(leaf, place), (args, kwargs))
        if any(tensor.numel() == 0 for _, tensor in tensors_in((args, kwargs))):
            raise ModelError(f"batch {index} is empty, {_shapes((args, kwargs))}")
        try:
            network(*args, **kwargs)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{_not_run(index, (args, kwargs))}: {describe_exception(error)}") from error
        yield index
        count += 1
    if not count:
        raise ModelError("no batch to calibrate on: the loader is empty")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """All modules in eval mode inside, and each in its own afterwards. Code that is compiled in place does not run."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # hooks that look at values would break its graphs
            yield
    finally:
        for module, training in modes:
            module.training = training


def _arguments(network: nn.Module, batch: Any, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; targets are left out."""
    if isinstance(batch, Mapping):
        accepted = set(inspect.signature(network.forward).parameters)
        keywords = {key: value for key, value in batch.items() if key in accepted and key not in ("label", "labels")}
        if keywords:
            return (), keywords
        key = next((name for name in _IMAGES if name in batch), None)
        if key is None:
            raise ModelError(f"batch {index} is a dict of {sorted(map(str, batch))}, no input of the model")
        return (batch[key],), {}
    if isinstance(batch, (tuple, list)) and batch:
        return (batch[0],), {}
    if not isinstance(batch, Tensor):
        raise ModelError(f"batch {index} is a {type(batch).__name__}; give tensors, (input, target) pairs or dicts")
    return (batch,), {}


def _placed(leaf: Any, place: Tensor) -> Any:
    """The leaf where the model is, in its dtype; pictures of bytes as numbers from 0 to 1."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.dtype == torch.uint8 and leaf.dim() >= 3:
        return leaf.to(place.device, place.dtype) / 255
    return leaf.to(place.device, place.dtype) if leaf.is_floating_point() else leaf.to(place.device)


def _shapes(arguments: Any) -> str:
    tensors = [tensor for _, tensor in tensors_in(arguments)]
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors[:3]) or "no tensor"


def _not_run(index: int, arguments: Any) -> str:
    tensors = [tensor for _, tensor in tensors_in(arguments)]
    message = f"the model cannot run on batch {index}, {_shapes(arguments)}"
    if tensors and tensors[0].dim() <= 2:
        message += "; these may be labels: of a pair the first entry is taken as the input"
    return message


def _shown(batches: Iterable[Any], description: str) -> Iterator[Any]:
    """The batches, with a progress bar where there is a terminal to see it."""
    from rich.console import Console
    from rich.progress import track

    console, silent = Console(stderr=True), not sys.stderr.isatty()
    yield from track(batches, description, console=console, transient=True, disable=silent)
