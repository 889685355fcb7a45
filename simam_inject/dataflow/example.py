"""Example inputs: the user's, or the size the model itself declares, else 1 x 3 x 224 x 224."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.twin import copied_with
from simam_inject.errors import ModelError
from simam_inject.nested import map_nested, tensors_in

DEFAULT_SIZE = (3, 224, 224)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor with the same content, of no graph; a leaf that asks for gradients does again."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


SPATIAL = slice(2, None), slice(1, -1), slice(-2, None)
"""Where the spatial dimensions of an input can be: N, C, spatial; N, spatial, C; or frames and views, N, T, C, H, W."""


@dataclass(frozen=True, slots=True)
class Example:
    """Arguments of one forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors among the arguments, in order."""
        return tuple(tensor for _, tensor in tensors_in([self.args, self.kwargs]))

    def fresh(self, convert: Callable[[torch.Tensor], torch.Tensor] = copied) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments for one run, which may write into them, empty lists and fill dicts: the example stays.

        Args:
            convert: makes the tensor that the run gets; one that is passed twice is passed twice again.
        """
        args, kwargs = copied_with(convert, (self.args, self.kwargs), shared=nn.Module)
        return args, kwargs

    def run(self, call: Callable[..., Any]) -> Any:
        """What `call` returns for arguments of its own."""
        args, kwargs = self.fresh()
        return call(*args, **kwargs)

    def with_batch(self, count: int) -> Example | None:
        """The same example with a batch of `count` samples more; None without a batch to enlarge.

        Every tensor whose first dimension is that of the first one, and every list that holds one image per sample,
        gets more samples, which are noisy copies of its first.
        """
        if self._is_list_of_images:
            images = self.args[0]
            return Example(
                ([*images, *[_noisy(images[0], seed) for seed in range(count)]], *self.args[1:]), self.kwargs
            )
        first = self._first(3)
        if first is None:
            return None

        def grow(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.dim() or tensor.shape[0] != first.shape[0]:
                return tensor
            return torch.cat([tensor, *[_noisy(tensor[:1], seed) for seed in range(count)]])

        return self._with(grow)

    def shrunk(self, side: int) -> Example | None:
        """The same example with images of at most this size; None where none is larger."""
        first = self._first(3)
        if first is None or max(first.shape[2:]) <= side:
            return None
        return self._resized(first, slice(2, None), lambda length: min(side, length))

    def with_size(self, spatial: slice = SPATIAL[0]) -> Example | None:
        """The same example at a larger spatial size; None where no argument has one.

        Args:
            spatial: which dimensions of an argument are spatial.
        """
        first = self._first(3)
        if first is None:
            return None
        is_video = first.dim() == 5

        def enlarge(length: int) -> int:
            if length >= 48:
                return length + 64
            return 2 * length if is_video else length + 32

        return self._resized(first, spatial, enlarge)

    @property
    def _is_list_of_images(self) -> bool:
        """As torchvision's detectors take it: one tensor C, H, W per sample."""
        images = self.args[0] if self.args and isinstance(self.args[0], list) else []
        return bool(images) and all(isinstance(image, torch.Tensor) and image.dim() == 3 for image in images)

    def _first(self, rank: int) -> torch.Tensor | None:
        """The first tensor of at least this rank; None for a list of images, which a detector resizes itself."""
        tensors = () if self._is_list_of_images else self.tensors
        return next((tensor for tensor in tensors if tensor.dim() >= rank), None)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
        def apply(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, torch.Tensor) else leaf

        return Example(*map_nested(apply, (self.args, self.kwargs)))

    def _resized(self, first: torch.Tensor, spatial: slice, length_for: Callable[[int], int]) -> Example:
        """Other lengths of the dimensions of all tensors that are like the first: parts of them, or repeated parts."""
        dims = range(first.dim())[spatial]
        lengths = {first.shape[dim] for dim in dims}

        def resize(tensor: torch.Tensor) -> torch.Tensor:
            for dim in dims if tensor.dim() == first.dim() else ():
                length = tensor.shape[dim]
                if length in lengths:
                    places = torch.arange(length_for(length), device=tensor.device) % length
                    tensor = tensor.index_select(dim, places)
            return tensor

        return self._with(resize)


def _noisy(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.is_meta:
        return tensor
    noise = torch.rand(
        tensor.shape, generator=torch.Generator().manual_seed(seed + 1), device="cpu", dtype=torch.float32
    )
    return (tensor.detach() + noise.to(tensor.device, tensor.dtype)).detach()


def example_of(model: nn.Module, example_inputs: Any = None) -> Example:
    """The example forward's arguments, on the model's own device and in its own floating dtype where we choose them.

    Args:
        model: any module; asked for its declared input size only if `example_inputs` is None.
        example_inputs: a tensor, a tuple (positional), a dict (keywords), a list (one list argument), or None.

    Raises:
        ModelError: `example_inputs` is of another type, or a shape such as (1, 3, 64, 64).
    """
    if example_inputs is None:
        return Example((_random_input(model, declared_size(model)),), {})
    if isinstance(example_inputs, (tuple, list)) and len(example_inputs) > 2 and {*map(type, example_inputs)} == {int}:
        shape = ", ".join(map(str, example_inputs))
        raise ModelError(f"example_inputs is a shape, not a tensor: give example_inputs=torch.rand({shape})")
    if isinstance(example_inputs, Mapping):
        return Example((), dict(example_inputs))
    if isinstance(example_inputs, tuple):
        return Example(example_inputs, {})
    if isinstance(example_inputs, (torch.Tensor, list)):
        return Example((example_inputs,), {})
    raise ModelError(
        f"example_inputs is a {type(example_inputs).__name__}; "
        "give a tensor, a tuple (positional arguments), a dict (keywords) or None"
    )


def example_like(model: nn.Module, shapes: Any) -> Example:
    """Random arguments of the shapes that `shapes_of` wrote down."""
    floating: list[torch.dtype] = []

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, str) or not leaf.startswith("tensor "):
            return leaf
        _, dtype, *shape = leaf.split()
        size = tuple(map(int, shape))
        kind: torch.dtype = getattr(torch, dtype)
        if (
            kind.is_floating_point
        ):  # those of the first one's dtype get that of the parameters, which may be another now
            floating.append(kind)
            made = _random_input(model, size, batched=True)
            return made if kind == floating[0] else made.to(kind)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return torch.zeros(size, dtype=kind, device=device)

    args, kwargs = map_nested(fill, (tuple(shapes["args"]), dict(shapes["kwargs"])))
    return Example(args, kwargs)


def shapes_of(example: Example) -> dict[str, Any] | None:
    """The arguments as plain data, tensors by dtype and shape; None where an argument is something else."""
    try:
        return {"args": _described(list(example.args)), "kwargs": _described(dict(example.kwargs))}
    except TypeError:
        return None


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return f"tensor {str(value.dtype).removeprefix('torch.')} {' '.join(map(str, value.shape))}"
    if type(value) in (list, tuple):
        return type(value)(_described(entry) for entry in value)
    if type(value) is dict:
        return {key: _described(entry) for key, entry in value.items()}
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    raise TypeError(f"no plain data: {type(value).__name__}")


def declared_size(model: nn.Module) -> tuple[int, ...]:
    """Channels and spatial size the model declares: timm's `default_cfg`, ultralytics' `imgsz`, else 3 x 224 x 224."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if size:
        channels = getattr(model, "in_chans", None)
        return (channels if isinstance(channels, int) else size[0], *size[1:])
    yaml = getattr(model, "yaml", None)
    if isinstance(yaml, Mapping) and "backbone" in yaml:  # ultralytics; its `args` hold imgsz once it has a task
        image = getattr(model, "args", None)
        image = image.get("imgsz") if isinstance(image, Mapping) else getattr(image, "imgsz", None)
        side = image if isinstance(image, int) else 640
        return (int(yaml.get("channels", yaml.get("ch", 3)) or 3), side, side)
    return DEFAULT_SIZE


def _random_input(model: nn.Module, size: tuple[int, ...], *, batched: bool = False) -> torch.Tensor:
    """Uniform noise in [0, 1) from a generator of its own: the global random state is not advanced."""
    device, dtype = next(
        ((p.device, p.dtype) for p in model.parameters() if p.is_floating_point()),
        (torch.device("cpu"), torch.get_default_dtype()),
    )
    shape = size if batched else (1, *size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    return noise.to(dtype) if device.type == "meta" else noise.to(device, dtype)
