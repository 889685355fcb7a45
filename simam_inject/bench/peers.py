"""The variants: the model as it is, with SimAM, and with other attentions in SimAM's own places."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from simam_inject.api import eject, inject, injected
from simam_inject.errors import ModelError

PLAIN, SIMAM = "plain", "SimAM"
PEERS = {
    "se": ("squeeze_excite", "SEModule"),
    "eca": ("eca", "EcaModule"),
    "cbam": ("cbam", "CbamModule"),
    "gc": ("global_context", "GlobalContext"),
}
"""Other attentions: file and class in `timm.layers`, which does not export them all, made for a number of channels."""


def peer_factory(name: str) -> Callable[[int], nn.Module]:
    """What makes the attention of that name for a number of channels.

    Raises:
        ModelError: the name is unknown.
    """
    if name not in PEERS:
        raise ModelError(f"unknown attention {name!r}; choose from {', '.join(PEERS)}")
    file, kind = PEERS[name]
    factory: Callable[[int], nn.Module] = getattr(import_module(f"timm.layers.{file}"), kind)
    return factory


def make_variants(model: nn.Module, recipe: Any, example: Any, against: tuple[str, ...]) -> dict[str, nn.Module]:
    """Copies of the model by name of variant, without the attention that it has. The model itself is not changed.

    Raises:
        ModelError: a peer is unknown, or a site is not two-dimensional, which the peers cannot attend.
    """
    factories = {name: peer_factory(name) for name in against}
    plain = eject(copy.deepcopy(model))
    variants = {PLAIN: plain, SIMAM: inject(copy.deepcopy(plain), recipe, example_inputs=example)}
    flat = next((site for site in injected(variants[SIMAM]) if len(site.shape) != 4), None)
    if flat is not None and factories:
        names = ", ".join(factories)
        raise ModelError(f"{names} need two-dimensional feature maps; the shape of {flat.path} is {flat.shape}")
    for name, factory in factories.items():
        twin = copy.deepcopy(plain)
        variants[name] = inject(twin, recipe, example_inputs=example, attention=factory, verify=False)
    return variants
