"""Example inputs: the user's, or the size the model itself declares, else 1 x 3 x 224 x 224."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.twin import copied_with
from simam_inject.errors import ModelError, a_type
from simam_inject.nested import map_nested, tensors_in

DEFAULT_SIZE = (3, 224, 224)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy outside of any autograd graph, which requires gradients as the tensor does."""
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

    def with_distinct_tensors(self, *, noise: bool = True) -> Example:
        """The same example, in which a tensor that is equal to an earlier one is another, multiplied by noise.

        Otherwise nothing shows that a network reads one of them in place of the other. Integers keep their values.

        Args:
            noise: False for copies of tensors that are passed twice, with their values.
        """
        seen: list[torch.Tensor] = []

        def alter(tensor: torch.Tensor) -> torch.Tensor:
            is_plain = tensor.is_floating_point() and tensor.itemsize > 1 and tensor.layout is torch.strided
            if noise and is_plain and any(_is_equal(tensor, one) for one in seen):
                tensor = tensor.detach() * (_noise(tensor.shape, len(seen)) / 2 + 0.5).to(tensor.device, tensor.dtype)
            elif any(tensor is one for one in seen):
                tensor = copied(tensor)
            seen.append(tensor)
            return tensor

        return self._with(alter)

    def run(self, call: Callable[..., Any]) -> Any:
        """What `call` returns for copies of the arguments."""
        args, kwargs = self.fresh()
        return call(*args, **kwargs)

    def with_batch(self, count: int) -> Example | None:
        """The same example with a batch of `count` samples more; None without a batch to enlarge.

        Every tensor whose first dimension is that of the image, or of the latent vectors of a generator, and every list
        that holds one image per sample, gets more samples, which are noisy copies of its first.
        """
        if self._is_list_of_images:
            images = self.args[0]
            return Example(([*images, *_noisy_copies(images[0], count)], *self.args[1:]), self.kwargs)
        first = self._image if self._image is not None else next((one for one in self.tensors if one.dim() == 2), None)
        if first is None:
            return None

        def grow(tensor: torch.Tensor) -> torch.Tensor:
            has_batch = tensor.layout is torch.strided and tensor.dim() > 0 and tensor.shape[0] == first.shape[0]
            return torch.cat([tensor, *_noisy_copies(tensor[:1], count)]) if has_batch else tensor

        return self._with(grow)

    def shrunk(self, side: int) -> Example | None:
        """The same example with images of at most this size; None where none is larger."""
        return self._resized(SPATIAL[0], lambda length: min(side, length))

    def with_size(self, spatial: slice = SPATIAL[0]) -> Example | None:
        """The same example at a larger spatial size; None where no argument has one.

        Args:
            spatial: which dimensions of an argument are spatial.
        """
        is_video = self._image is not None and self._image.dim() == 5

        def enlarged(length: int) -> int:
            return length + 64 if length >= 48 else 2 * length if is_video else length + 32

        return self._resized(spatial, enlarged)

    @property
    def samples(self) -> int | None:
        """The batch size; None where no argument is a tensor of at least three dimensions, as for lists of images."""
        tensors = (one for one in (*self.args, *self.kwargs.values()) if isinstance(one, torch.Tensor))
        return next((tensor.shape[0] for tensor in tensors if tensor.dim() > 2), None)

    @property
    def _is_list_of_images(self) -> bool:
        """As torchvision's detectors take it: one tensor C, H, W per sample."""
        images = self.args[0] if self.args and isinstance(self.args[0], list) else []
        return bool(images) and all(isinstance(image, torch.Tensor) and image.dim() == 3 for image in images)

    @property
    def _image(self) -> torch.Tensor | None:
        """The first tensor of at least three dimensions; None for a list of images, which a detector resizes itself."""
        tensors = () if self._is_list_of_images else self.tensors
        return next((tensor for tensor in tensors if tensor.dim() > 2), None)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
        def apply(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, torch.Tensor) else leaf

        return Example(*map_nested(apply, (self.args, self.kwargs)))

    def _resized(self, spatial: slice, length_for: Callable[[int], int]) -> Example | None:
        """Other lengths of all tensors that are like the image: parts of them, or repeated parts; None if they stay."""
        image = self._image
        if image is None:
            return None
        dims = range(image.dim())[spatial]
        lengths = {image.shape[dim]: length_for(image.shape[dim]) for dim in dims}

        def resize(tensor: torch.Tensor) -> torch.Tensor:
            for dim in dims if tensor.dim() == image.dim() else ():
                length = tensor.shape[dim]
                if length in lengths:
                    tensor = tensor.index_select(dim, torch.arange(lengths[length], device=tensor.device) % length)
            return tensor

        return self._with(resize) if any(new != length for length, new in lengths.items()) else None


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.device, a.dtype, a.layout) == (b.device, b.dtype, b.layout) and torch.equal(a, b)


def _noisy_copies(tensor: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The tensor with different noise added; integers, float8 and tensors without data stay as they are."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.itemsize == 1:
        return [tensor] * count
    noise = (_noise(tensor.shape, seed).to(tensor.device, tensor.dtype) for seed in range(1, count + 1))
    return [(tensor.detach() + one).detach() for one in noise]


def _noise(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), without use of the global random state."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tuple(shape), generator=generator, device="cpu", dtype=torch.float32)


def example_of(model: nn.Module, example_inputs: Any = None) -> Example:
    """The arguments of the example forward; a default is on the model's device and in its floating-point dtype.

    Args:
        model: any module; only if `example_inputs` is None, the input size that it declares is used.
        example_inputs: a tensor, a tuple (positional), a dict (keywords), a list (one list argument), or None.

    Raises:
        ModelError: `example_inputs` is of another type, a shape such as (1, 3, 64, 64), or holds tensors that are
            nested or without data.
    """
    for _, tensor in tensors_in(example_inputs):
        if tensor.is_nested:
            raise ModelError("example_inputs holds a nested tensor, whose samples have no common shape: pad it")
        if tensor.is_meta:
            raise ModelError("example_inputs holds a tensor on the meta device: give one with data, as of torch.rand")
    if example_inputs is None:
        return Example((_random_input(model, (1, *declared_size(model))),), {})
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
        f"example_inputs is {a_type(example_inputs)}; "
        "give a tensor, a tuple (positional arguments), a dict (keywords) or None"
    )


def example_like(model: nn.Module, shapes: Any) -> Example:
    """Random arguments of the shapes that `shapes_of` returned.

    Tensors of the dtype that the first floating-point one had get the dtype of the parameters, which may have changed.
    """
    device, _ = _device_and_dtype(model)
    first: list[torch.dtype] = []

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, str) or not leaf.startswith("tensor "):
            return leaf
        _, name, *lengths = leaf.split()
        shape, dtype = tuple(map(int, lengths)), getattr(torch, name)
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=device)
        first.append(dtype)
        made = _random_input(model, shape)
        return made if dtype == first[0] else made.to(dtype)

    return Example(*map_nested(fill, (tuple(shapes["args"]), dict(shapes["kwargs"]))))


def shapes_of(example: Example) -> dict[str, Any]:
    """The arguments, with dtype and shape as text in the place of each tensor that can be made again."""

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided:
            return leaf
        return " ".join(["tensor", str(leaf.dtype).removeprefix("torch."), *map(str, leaf.shape)])

    args, kwargs = map_nested(describe, (list(example.args), dict(example.kwargs)))
    return {"args": args, "kwargs": kwargs}


def declared_size(model: nn.Module) -> tuple[int, ...]:
    """Channels and spatial size the model declares: timm's `default_cfg`, ultralytics' `imgsz`, else 3 x 224 x 224."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if size:
        channels = getattr(model, "in_chans", None)
        return (channels if isinstance(channels, int) else size[0], *size[1:])
    yaml = getattr(model, "yaml", None)
    if isinstance(yaml, Mapping) and "backbone" in yaml:  # ultralytics; its `args` contain imgsz once it has a task
        image = getattr(model, "args", None)
        image = image.get("imgsz") if isinstance(image, Mapping) else getattr(image, "imgsz", None)
        default = 224 if "'Classify'" in str(yaml.get("head")) else 640  # `args` have 640 for every task
        side = image if isinstance(image, int) and image != 640 else default
        return (int(yaml.get("channels", yaml.get("ch", 3)) or 3), side, side)
    return DEFAULT_SIZE


def _random_input(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Noise on the device and in the dtype of a model."""
    device, dtype = _device_and_dtype(model)
    return _noise(shape, seed=0).to(None if device.type == "meta" else device, dtype)


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Those of the first floating-point parameter."""
    parameters = (p for p in model.parameters() if p.is_floating_point())
    first = next(parameters, torch.empty(0, device="cpu"))
    return first.device, first.dtype
