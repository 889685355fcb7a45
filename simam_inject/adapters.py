"""Adapters for libraries that wrap their models in another object, or need more than hooks to stay injected.

Each adapter is one file or folder of `integrations`, loaded by name when a model of its library is met; it registers
itself. A network that an adapter keeps injected carries a mark, whose unpickling loads the integration: a checkpoint
works in a process that imports only its library.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
"""Maps the module that defines a class of the library to the module that registers its adapter."""
_MARK = "simam_integration"
_ORIGINAL = "_simam_original"


class Adapter:
    """What is done for a library's network, or for an object that holds one; as it is, for one that needs nothing.

    Args:
        integration: module that unpickling an injected network loads; None for none.
    """

    def __init__(self, integration: str | None = None) -> None:
        self.integration = integration

    def network(self, model: nn.Module) -> nn.Module:
        """The network inside the object; a network itself."""
        return model

    def remember(self, model: nn.Module) -> None:
        """Called when SimAM was put in, or set to another strength or gain: keep it through what the library does."""
        if self.integration is not None:
            self.network(model).__dict__[_MARK] = IntegrationMark(self.integration)

    def forget(self, model: nn.Module) -> None:
        """Called after eject: leave no trace of an injection."""
        self.network(model).__dict__.pop(_MARK, None)

    def refresh(self, model: nn.Module) -> None:
        """Called when the network has changed: drop copies that the library made of it."""

    def deployed(self, model: nn.Module) -> Iterator[nn.Module]:  # noqa: ARG002
        """Copies of the network in the forms that the library exports, where they are others than the network's."""
        yield from ()

    def batches(self, model: nn.Module, data: str) -> Iterable[Any] | None:  # noqa: ARG002
        """Batches of a data set that the library reads by a name or a file; None if it reads none for this object."""
        return None


class IntegrationMark:
    """Attribute of a network; unpickling it loads the integration that it names."""

    def __init__(self, integration: str) -> None:
        self.integration = integration

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state.get("integration")
        if name not in _INTEGRATIONS.values():  # a file names nothing else to import
            raise FileError(f"the file asks for the integration {name!r:.80}, which this package does not have")
        self.integration = str(name)
        importlib.import_module(self.integration)


_PLAIN = Adapter()
_adapters: dict[str, Adapter] = {}


def register(integration: str, adapter: Adapter) -> None:
    """Make an adapter known; called by the integration when it is imported."""
    _adapters[integration] = adapter


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter for this object, its integration loaded if need be."""
    _load_lightning()
    for base in type(model).__mro__:
        name = _INTEGRATIONS.get(base.__module__)
        if name is not None:
            if name not in _adapters:
                importlib.import_module(name)
            return _adapters[name]
    return _PLAIN


def _load_lightning() -> None:
    """Load that integration where Lightning is in use: whatever is injected may be a part of a LightningModule."""
    in_use = [name for name, integration in _INTEGRATIONS.items() if integration == _LIGHTNING and name in sys.modules]
    if _LIGHTNING in _adapters or not in_use:
        return
    try:
        importlib.import_module(_LIGHTNING)
    except (ImportError, AttributeError, KeyError) as error:  # a release that names its functions otherwise
        register(_LIGHTNING, _PLAIN)
        warnings.warn(f"checkpoints of this release of Lightning will not contain SimAM: {error!r}", stacklevel=4)


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a library's own object; the model itself if it is one."""
    return adapter_of(model).network(model)


def remember(model: nn.Module) -> None:
    """Let the library's own object keep what is in its network now; see `Adapter.remember`."""
    adapter_of(model).remember(model)


def refresh(model: nn.Module) -> None:
    """Let the library's own object drop the copies that it made of its network."""
    adapter_of(model).refresh(model)


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Let calls of a function go to `around(function, *arguments)`, once for the process.

    For a class or module of a library that has no point of extension where one is needed.
    """
    original = vars(owner)[name]
    if hasattr(original, _ORIGINAL):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, _ORIGINAL, original)
    setattr(owner, name, wrapped)


torch.serialization.add_safe_globals([IntegrationMark])
