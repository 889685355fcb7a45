"""Adapters for libraries that wrap their models in another object, or need more than hooks to stay injected.

Each adapter is one file or folder of `integrations`, loaded by name when a model of its library is met. A network that
an adapter keeps injected carries a mark, whose unpickling loads the integration: a checkpoint works in a process that
imports only its library.
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

from simam_inject.editing.attach import attended_in
from simam_inject.errors import FileError
from simam_inject.modules import check_module

_LIGHTNING = "simam_inject.integrations.lightning"
_INTEGRATIONS = {
    "lightning.pytorch.core.module": _LIGHTNING,
    "pytorch_lightning.core.module": _LIGHTNING,
    "ultralytics.engine.model": "simam_inject.integrations.ultralytics",
    "ultralytics.nn.tasks": "simam_inject.integrations.ultralytics",
}
"""Maps the module that defines a class of the library to the module whose `ADAPTER` is for it."""
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
        """The network inside the object, or the network itself."""
        return model

    def update(self, model: nn.Module) -> None:
        """Called after the sites, their settings or the weights have changed: make it persist in the library."""
        network = self.network(model)
        if self.integration is not None and any(attended_in(network)):
            network.__dict__[_MARK] = IntegrationMark(self.integration)
        else:
            network.__dict__.pop(_MARK, None)

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


@functools.cache
def _load(integration: str) -> Adapter:
    try:
        adapter: Adapter = importlib.import_module(integration).ADAPTER
    except (ImportError, AttributeError, KeyError) as error:
        if integration != _LIGHTNING:
            raise
        # a release that names its functions otherwise; models that are no LightningModule need none of it
        warnings.warn(f"checkpoints of this release of Lightning will not contain SimAM: {error!r}", stacklevel=4)
        return Adapter()
    return adapter


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter for this object, its integration loaded if need be."""
    if any(name in sys.modules for name, integration in _INTEGRATIONS.items() if integration == _LIGHTNING):
        _load(_LIGHTNING)  # whatever is injected may be a part of a LightningModule
    for base in type(model).__mro__:
        integration = _INTEGRATIONS.get(base.__module__)
        if integration is not None:
            return _load(integration)
    return Adapter()


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a library's own object; the model itself if it is one.

    Raises:
        ModelError: it is no module, e.g. a class, or holds no network.
    """
    return adapter_of(check_module(model)).network(model)


def update(model: nn.Module) -> None:
    """Let the library's own object keep what is in its network now; see `Adapter.update`."""
    adapter_of(model).update(model)


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
