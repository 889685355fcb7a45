"""Example inputs: the user's, or the size the model itself declares, else 1 x 3 x 224 x 224."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from simam_inject.errors import ModelError
from simam_inject.tracing.values import leaves, map_structure

DEFAULT_SIZE = (3, 224, 224)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor with the same content, of no graph; a leaf that asks for gradients does again."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _copied_object(thing: Any, twins: dict[int, Any]) -> Any:
    """A caller's own object; itself where it cannot be copied (a lock, an open file)."""
    try:
        return copy.deepcopy(thing, twins)
    except Exception:
        return thing


@dataclass(frozen=True, slots=True)
class Example:
    """Arguments of one forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        shown = []
        for leaf in leaves((self.args, self.kwargs)):
            if isinstance(leaf, torch.Tensor):
                shown.append("x".join(map(str, leaf.shape)) + " " + str(leaf.dtype).removeprefix("torch."))
            else:
                shown.append(repr(leaf))
        return ", ".join(shown)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors among the arguments, in order."""
        return tuple(leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor))

    def fresh(self, twin: Callable[[torch.Tensor], torch.Tensor] = copied) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments for one run, which may write into them, empty its lists and fill its dicts: the example stays.

        Args:
            twin: makes the tensor that the run gets; one that is passed twice is passed twice again.
        """
        twins: dict[int, Any] = {}

        def renew(leaf: Any) -> Any:
            if isinstance(leaf, nn.Module):
                return leaf
            if id(leaf) not in twins:
                twins[id(leaf)] = twin(leaf) if isinstance(leaf, torch.Tensor) else _copied_object(leaf, twins)
            return twins[id(leaf)]

        args, kwargs = map_structure(renew, (self.args, self.kwargs))
        return args, kwargs

    def given_to(self, call: Callable[..., Any]) -> Any:
        """What `call` returns for arguments that are its own."""
        args, kwargs = self.fresh()
        return call(*args, **kwargs)

    def repeated(self, count: int) -> Example:
        """The same example with a batch `count` times as large, where tensors have a batch dimension of one."""

        def repeat(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor) and leaf.dim() >= 3 and leaf.shape[0] == 1:
                noise = torch.Generator().manual_seed(1)
                parts = [leaf] + [
                    leaf + torch.rand(leaf.shape, generator=noise).to(leaf) if leaf.is_floating_point() else leaf
                    for _ in range(count - 1)
                ]
                return torch.cat(parts)
            return leaf

        return Example(*map_structure(repeat, (self.args, self.kwargs)))


def example_of(model: nn.Module, example_inputs: Any = None) -> Example:
    """The example forward's arguments, on the model's own device and in its own floating dtype where we choose them.

    Args:
        model: any module; asked for its declared input size only if `example_inputs` is None.
        example_inputs: a tensor, a tuple (positional), a dict (keywords), a list (one list argument), or None.

    Raises:
        ModelError: `example_inputs` is of another type.
    """
    if example_inputs is None:
        return Example((_random_input(model, declared_size(model)),), {})
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


def declared_size(model: nn.Module) -> tuple[int, ...]:
    """Channels and spatial size the model declares: timm's `default_cfg`, ultralytics' `imgsz`, else 3 x 224 x 224."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if size:
        channels = getattr(model, "in_chans", None)
        return (channels if isinstance(channels, int) else size[0], *size[1:])
    yaml = getattr(model, "yaml", None)
    if (
        isinstance(yaml, Mapping) and "backbone" in yaml
    ):  # an ultralytics model; its `args` hold imgsz once it has a task
        image = getattr(model, "args", None)
        image = image.get("imgsz") if isinstance(image, Mapping) else getattr(image, "imgsz", None)
        side = image if isinstance(image, int) else 640
        return (int(yaml.get("channels", yaml.get("ch", 3)) or 3), side, side)
    return DEFAULT_SIZE


def _random_input(model: nn.Module, size: tuple[int, ...]) -> torch.Tensor:
    """Uniform noise in [0, 1) from a generator of its own: the global random state is not advanced."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.rand((1, *size), generator=torch.Generator().manual_seed(0))
    return noise.to(reference.dtype) if reference.is_meta else noise.to(reference.device, reference.dtype)
