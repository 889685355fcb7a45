"""Libraries whose models live inside an object of their own, or need more than hooks to stay injected.

Each adapter is one file or folder of `integrations`, loaded by name when a model of its library is met; it registers
itself. A network that an adapter keeps injected carries a mark, whose unpickling loads the integration: a checkpoint
works in a process that imports only its library.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from simam_inject.errors import FileError

_LIGHTNING = "simam_inject.integrations.lightning"
_INTEGRATIONS = {
    "lightning.pytorch.core.module": _LIGHTNING,
    "pytorch_lightning.core.module": _LIGHTNING,
    "ultralytics.engine.model": "simam_inject.integrations.ultralytics",
    "ultralytics.nn.tasks": "simam_inject.integrations.ultralytics",
}
"""Module in which a class of the library is defined -> module that registers the adapter."""

_MARK = "simam_integration"


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

    def batches(self, model: nn.Module, data: str) -> Iterable[Any] | None:
        """Batches of a data set that the library knows by a name or a file; None if it knows none for this object."""


_adapters: dict[str, Adapter] = {}
_failed: set[str] = set()


class IntegrationMark:
    """Stands on a network as an attribute; unpickling it loads the integration that it names."""

    def __init__(self, integration: str) -> None:
        self.integration = integration

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state.get("integration")
        if name not in _INTEGRATIONS.values():  # a file names nothing else to import
            raise FileError(f"the file asks for the integration {name!r:.80}, which this package does not have")
        self.integration = str(name)
        importlib.import_module(self.integration)


def mark(network: nn.Module, integration: str | None) -> None:
    """Let unpickling the network load an integration; None takes the mark away."""
    network.__dict__.pop(_MARK, None)
    if integration is not None:
        network.__dict__[_MARK] = IntegrationMark(integration)


def register(integration: str, adapter: Adapter) -> None:
    """Make an adapter known; called by the integration when it is imported."""
    _adapters[integration] = adapter


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter for this object, its integration loaded if need be; None for a plain network."""
    _load_beside()
    for base in type(model).__mro__:
        name = _INTEGRATIONS.get(base.__module__)
        if name is not None:
            if name not in _adapters:
                importlib.import_module(name)
            return _adapters.get(name)
    return None


def _load_beside() -> None:
    """Load the integration of Lightning where it is in use: whatever is injected may be a part of a LightningModule."""
    in_use = [name for name, integration in _INTEGRATIONS.items() if integration == _LIGHTNING and name in sys.modules]
    if in_use and _LIGHTNING not in _adapters and _LIGHTNING not in _failed:
        try:
            importlib.import_module(_LIGHTNING)
        except (ImportError, AttributeError, KeyError) as error:  # a release that names its functions otherwise
            _failed.add(_LIGHTNING)
            warnings.warn(f"checkpoints of this release of Lightning will not hold SimAM: {error!r}", stacklevel=4)


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a library's own object; the model itself if it is one."""
    adapter = adapter_of(model)
    return model if adapter is None else adapter.network(model)


def remember(model: nn.Module) -> None:
    """Let the adapter of a library note what is in the network now; see `Adapter.remember`."""
    adapter = adapter_of(model)
    if adapter is not None:
        adapter.remember(model)


def refresh(model: nn.Module) -> None:
    """Let the library's own object drop the copies that it made of its network."""
    adapter = adapter_of(model)
    if adapter is not None:
        adapter.refresh(model)


def deployed_forms(model: nn.Module) -> Iterator[nn.Module]:
    """The network as its library may export it, copies; nothing for a plain network, which is exported as it is."""
    adapter = adapter_of(model)
    if adapter is not None:
        yield from adapter.deployed(model)


def batches_of(model: nn.Module, data: str) -> Iterable[Any] | None:
    """Batches of a data set, by a name or a file that the model's library knows; None for a plain network."""
    adapter = adapter_of(model)
    return None if adapter is None else adapter.batches(model, data)


torch.serialization.add_safe_globals([IntegrationMark])
