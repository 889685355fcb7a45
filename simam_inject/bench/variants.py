"""The variants: the model as it is, with SimAM, and with other attentions in SimAM's own places."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from simam_inject.errors import ModelError
from simam_inject.rewriting.rewriter import edits_in
from simam_inject.surgery import inject

PLAIN, SIMAM = "plain", "SimAM"


def _se(channels: int) -> nn.Module:
    from timm.layers.squeeze_excite import SEModule

    return SEModule(channels)


def _eca(channels: int) -> nn.Module:
    from timm.layers.eca import EcaModule

    return EcaModule(channels)


def _cbam(channels: int) -> nn.Module:
    from timm.layers.cbam import CbamModule

    return CbamModule(channels)


def _gc(channels: int) -> nn.Module:
    from timm.layers.global_context import GlobalContext

    return GlobalContext(channels)


PEERS: dict[str, Callable[[int], nn.Module]] = {"se": _se, "eca": _eca, "cbam": _cbam, "gc": _gc}
"""Peers by name: timm's modules, made for a number of channels."""


class ChannelsLast(nn.Module):
    """A channels-first module at a site whose channels come last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend an N, H, W, C map."""
        attended: torch.Tensor = self.inner(x.movedim(-1, 1)).movedim(1, -1)
        return attended


def make_variants(model: nn.Module, recipe: object, example: object, against: tuple[str, ...]) -> dict[str, nn.Module]:
    """Copies of the model by name of variant. The model itself is not changed.

    Raises:
        ModelError: a peer is unknown, or a site is not two-dimensional, which the peers cannot attend.
    """
    unknown = [name for name in against if name not in PEERS]
    if unknown:
        raise ModelError(f"no attention named {unknown[0]!r} to compare with; there are {', '.join(PEERS)}")
    variants = {PLAIN: copy.deepcopy(model), SIMAM: inject(copy.deepcopy(model), recipe, example_inputs=example)}
    for name in against:
        twin = copy.deepcopy(variants[SIMAM])
        for path, holder, edit in edits_in(twin):
            if len(edit.shape) != 4:
                raise ModelError(f"{name} needs two-dimensional maps; {path} has {edit.shape}")
            peer = PEERS[name](edit.shape[edit.channel_dim])
            reference = next(twin.parameters())
            peer.to(reference.device, reference.dtype)
            holder._modules[edit.child] = peer if edit.channel_dim == 1 else ChannelsLast(peer)
        variants[name] = twin
    return variants
