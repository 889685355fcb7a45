"""Libraries whose models live inside an object of their own, or need more than hooks to stay injected.

Each adapter is one file or folder of `integrations`, loaded by name when a model of its library is met; it registers itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Protocol

from torch import nn

_INTEGRATIONS = {
    "ultralytics.engine.model": "simam_inject.integrations.ultralytics",
    "ultralytics.nn.tasks": "simam_inject.integrations.ultralytics",
}
"""Module in which a class of the library is defined -> module that registers the adapter."""


class Adapter(Protocol):
    """What an integration offers for a library's network, or for an object that holds one."""

    def network(self, model: nn.Module) -> nn.Module:
        """The network inside the object; a network itself."""

    def remember(self, model: nn.Module) -> None:
        """Called when SimAM was put in, or set to another strength or gain: keep it through what the library does."""

    def forget(self, model: nn.Module) -> None:
        """Called after eject: leave no trace of an injection."""

    def refresh(self, model: nn.Module) -> None:
        """Called when the network computes something else than before: drop what the library copied from it."""

    def deployed(self, model: nn.Module) -> Iterator[nn.Module]:
        """Copies of the network in the forms that the library exports."""


_adapters: dict[str, Adapter] = {}


def register(integration: str, adapter: Adapter) -> None:
    """Make an adapter known; called by the integration when it is imported."""
    _adapters[integration] = adapter


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter for this object, its integration loaded if need be; None for a plain network."""
    for base in type(model).__mro__:
        name = _INTEGRATIONS.get(base.__module__)
        if name is not None:
            if name not in _adapters:
                importlib.import_module(name)
            return _adapters.get(name)
    return None


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a library's own object; the model itself if it is one."""
    adapter = adapter_of(model)
    return model if adapter is None else adapter.network(model)


def refresh(model: nn.Module) -> None:
    """Let the library's own object drop the copies that it made of its network."""
    adapter = adapter_of(model)
    if adapter is not None:
        adapter.refresh(model)


