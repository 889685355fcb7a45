"""`attention_maps`: the gates of the SimAMs of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.adapters import network_of
from simam_inject.attention import ArgumentError, SimAM, gate
from simam_inject.editing.bypass import bypassed
from simam_inject.warmup.batches import evaluating
from simam_inject.warmup.strength import simams_of


def attention_maps(model: nn.Module, *inputs: Any, channel: int | None = None) -> dict[str, Tensor]:
    """Return the gate of every SimAM for these inputs, between 0.62 and 1.

    Runs the model once, in eval mode and without gradients, and does not change it. Strength and gain are not included:
    the gate is what `simam` multiplies by at strength 1 and gain 1.

    Args:
        model: a model with SimAM in it, or an ultralytics `YOLO`.
        *inputs: the arguments of its forward.
        channel: the gate of this one channel, instead of the mean over all channels.

    Returns:
        By path of the site, in the order in which they run: N x 1 x spatial, float32 (float64 for float64). Of a site
        that runs several times in one forward, the second run is `path (run 2)`, and so on.

    Raises:
        ModelError: the model has no SimAM.
        ArgumentError: a map has no such channel.

    Example:
        >>> import torch, torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> attention_maps(model, torch.rand(1, 3, 64, 64))["layer1.0.conv2"].shape
        torch.Size([1, 1, 16, 16])
    """

    def gate_of(attention: SimAM, x: Tensor) -> Tensor:
        return gate(x, attention.e_lambda, channel_dim=attention.channel_dim)

    return _record(model, inputs, gate_of, channel)


def difference_maps(model: nn.Module, *inputs: Any, channel: int | None = None) -> dict[str, Tensor]:
    """How far attention has moved the map at each site: |with - without| / mean |without|, as `attention_maps`.

    With attention is what the site hands on in the model as it is, with its strength and gain, after everything that
    earlier sites changed; without is the map at the same place of the model with all SimAMs bypassed.
    """
    with bypassed(network_of(model)):
        plain = _record(model, inputs, lambda _, x: x, channel, average=False)
    attended = _record(model, inputs, SimAM.forward, channel, average=False)
    maps = {}
    for path, y in attended.items():
        x = plain[path]
        size = x.abs().mean(tuple(range(1, x.dim())), keepdim=True).clamp(min=1e-30)
        maps[path] = (y - x).abs().mean(1, keepdim=True) / size
    return maps


def _record(
    model: nn.Module,
    inputs: tuple[Any, ...],
    function: Callable[[SimAM, Tensor], Tensor],
    channel: int | None,
    average: bool = True,
) -> dict[str, Tensor]:
    network = network_of(model)
    found: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[[Any, Any], None]:
        def look(attention: SimAM, args: tuple[Tensor, ...]) -> None:
            values = function(attention, args[0].detach())
            values = values.movedim(-1, 1) if attention.channel_dim == -1 else values
            if channel is not None:
                if not 0 <= channel < values.shape[1]:
                    raise ArgumentError(f"the map at {path} has channels 0 to {values.shape[1] - 1}; found {channel}")
                values = values.narrow(1, channel, 1)
            run = sum(name == path or name.startswith(f"{path} (run ") for name in found) + 1
            name = path if run == 1 else f"{path} (run {run})"
            found[name] = values.mean(1, keepdim=True) if average else values.clone()

        return look

    sites = simams_of(network)
    handles = [attention.register_forward_pre_hook(watch(path)) for path, attention in sites]
    try:
        with evaluating(network), torch.no_grad():
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
