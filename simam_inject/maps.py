"""`attention_maps`: the gates of the SimAMs of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.adapters import network_of
from simam_inject.attention import ArgumentError, SimAM, gate
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.surroundings import same_random_states
from simam_inject.dataflow.survey import cannot_run
from simam_inject.errors import ModelError
from simam_inject.modules import unwrapped
from simam_inject.warmup.batches import evaluated_twin
from simam_inject.warmup.strength import named_simams


def attention_maps(model: nn.Module, *inputs: Any, channel: int | None = None) -> dict[str, Tensor]:
    """Return the gate of every SimAM for these inputs, between 0.62 and 1.

    Runs a copy of the model once, on copies of the inputs, in eval mode and without gradients; the random state of the
    process is not changed. Strength and gain are not included: the gate is
    what `simam` multiplies by at strength 1 and gain 1.

    Args:
        model: a model with SimAM in it, which DDP or `torch.compile` may have wrapped, or an ultralytics `YOLO`.
        *inputs: the arguments of its forward.
        channel: the gate of this one channel, instead of the mean over all channels.

    Returns:
        By path of the site, in the order in which they run: N x 1 x spatial, float32 (float64 for float64). Of a site
        that runs several times in one forward, the second run is `path (run 2)`, and so on.

    Raises:
        ModelError: the model has no SimAM, is sharded, or cannot be run on the inputs.
        ArgumentError: a map has no such channel.

    Example:
        >>> import torch, torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> attention_maps(model, torch.rand(1, 3, 64, 64))["layer1.0.conv2"].shape
        torch.Size([1, 1, 16, 16])
    """

    def mean_gate(name: str, attention: SimAM, x: Tensor) -> Tensor:
        values = gate(x, attention.e_lambda, channel_dim=attention.channel_dim)
        return _channels(name, values, attention, channel).mean(1, keepdim=True)

    return _record(model, inputs, mean_gate)


def difference_maps(model: nn.Module, *inputs: Any, channel: int | None = None) -> dict[str, Tensor]:
    """Return how much SimAM changes the map at each site: |with - without| / mean |without|, as `attention_maps`.

    "With" is the output of the SimAM in the model as it is: with its strength and gain, and after everything that
    earlier sites changed. "Without" is the map at the same place of the model with all SimAMs bypassed,
    from the same random state.

    Raises:
        ModelError, ArgumentError: as `attention_maps`; or a site does not run, or has another size, without SimAM.

    Example:
        >>> import torch, torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> difference_maps(model, torch.rand(1, 3, 64, 64))["layer1.0.conv2"].shape
        torch.Size([1, 1, 16, 16])
    """

    def plain_map(name: str, attention: SimAM, x: Tensor) -> Tensor:
        return _channels(name, x, attention, channel).clone()

    def change(name: str, attention: SimAM, x: Tensor) -> Tensor:
        before, after = plain.get(name), _channels(name, attention.forward(x), attention, channel)
        if before is None or before.shape != after.shape:
            raise ModelError(f"{name} has no map of this size without SimAM: SimAM changes what the forward runs")
        size = before.abs().mean(tuple(range(1, before.dim())), keepdim=True).clamp(min=1e-30)
        return (after - before).abs().mean(1, keepdim=True) / size

    plain = _record(model, inputs, plain_map, bypass=True)
    return _record(model, inputs, change)


def _channels(name: str, values: Tensor, attention: SimAM, channel: int | None) -> Tensor:
    """N x C x spatial; of one channel, N x 1 x spatial."""
    values = values.movedim(attention.channel_dim, 1)
    if channel is None:
        return values
    if channel not in range(values.shape[1]):
        raise ArgumentError(f"the map at {name} has channels 0 to {values.shape[1] - 1}; found {channel}")
    return values.narrow(1, int(channel), 1)


def _record(
    model: nn.Module,
    inputs: tuple[Any, ...],
    measure: Callable[[str, SimAM, Tensor], Tensor],
    *,
    bypass: bool = False,
) -> dict[str, Tensor]:
    """What `measure` returns for the name, the SimAM and the input of each run of a site, by name."""
    twin, example = evaluated_twin(unwrapped(network_of(model)), "take attention maps"), Example(inputs, {})
    found: dict[str, Tensor] = {}

    def look(path: str, attention: SimAM, args: tuple[Tensor, ...]) -> None:
        runs = sum(name.partition(" (run ")[0] == path for name in found)
        name = f"{path} (run {runs + 1})" if runs else path
        found[name] = measure(name, attention, args[0].detach())

    for path, attention in named_simams(twin):
        attention.register_forward_pre_hook(partial(look, path))
        attention.bypassed |= bypass
    try:
        with torch.no_grad(), same_random_states():
            example.run(twin)
    except RuntimeError as error:
        raise cannot_run(twin, example, error) from error
    return found
