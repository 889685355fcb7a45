"""Adapters for libraries that wrap networks in another object, or build new networks that must be injected too.

Each adapter is one file or folder of `integrations`, imported by the first call that finds its library imported. Its
injected networks have a mark as an attribute, and unpickling the mark imports the integration: a checkpoint can be
loaded and trained by a program that imports only the library.
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
from simam_inject.editing.presence import restore_hooks
from simam_inject.errors import FileError
from simam_inject.modules import check_module

_LIGHTNING, _ULTRALYTICS = "simam_inject.integrations.lightning", "simam_inject.integrations.ultralytics"
_INTEGRATIONS = {
    "lightning.pytorch.core.module": _LIGHTNING,
    "pytorch_lightning.core.module": _LIGHTNING,
    "ultralytics.engine.model": _ULTRALYTICS,
    "ultralytics.nn.tasks": _ULTRALYTICS,
}
"""Module that defines classes of a library -> the integration, whose `ADAPTER` is for these classes."""
_MARK = "simam_integration"
_ORIGINAL = "_simam_original"


class Adapter:
    """How the models of one library are handled. This base class is for models that need nothing.

    Args:
        integration: Name of the module to import when an injected network is unpickled; None for none.
    """

    def __init__(self, integration: str | None = None) -> None:
        self.integration = integration

    def network(self, model: nn.Module) -> nn.Module:
        """The network inside a library's object such as `YOLO`; a network itself is returned as it is."""
        return model

    def check(self, network: nn.Module) -> None:
        """Refuse a network whose file asks for SimAM that it was built without."""

    def update(self, model: nn.Module) -> None:
        """Write the sites and settings, which have changed, to where the library looks when it copies or rebuilds."""
        network = self.network(model)
        if not any(attended_in(network)):
            for module in network.modules():
                module.__dict__.pop(_MARK, None)
        elif self.integration is not None:
            network.__dict__[_MARK] = IntegrationMark(self.integration)

    def after_load(self, model: nn.Module) -> None:
        """Use the weights that were loaded into a model, and its sites, for whatever the library does with it."""
        self.update(model)

    def exported_copies(self, model: nn.Module) -> Iterator[nn.Module]:  # noqa: ARG002
        """Copies of the network as the library exports it; none if it is exported as it is."""
        yield from ()

    def batches(self, model: nn.Module, data: str) -> Iterable[Any] | None:  # noqa: ARG002
        """Batches of a data set, given the name or file by which the library reads it; None if it cannot read one."""
        return None


class IntegrationMark:
    """Attribute of an injected network: unpickling it imports this integration and Lightning's, if their library is."""

    def __init__(self, integration: str) -> None:
        self.integration = integration

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state.get("integration")
        if name not in _INTEGRATIONS.values():  # a file must not import anything else
            raise FileError(f"the file asks for the integration {name!r:.80}, which this package does not have")
        self.integration = str(name)
        for integration in (self.integration, _LIGHTNING):  # this network may be a part of a LightningModule, too
            if _is_imported(integration):  # as it is by the class that was unpickled before
                _load(integration)


def _is_imported(integration: str) -> bool:
    """Whether the library of an integration is imported."""
    return any(name in sys.modules for name, its in _INTEGRATIONS.items() if its == integration)


@functools.cache
def _load(integration: str) -> Adapter:
    try:
        adapter: Adapter = importlib.import_module(integration).ADAPTER
    except (ImportError, AttributeError, KeyError) as error:
        if integration != _LIGHTNING:
            raise
        # this release has other function names; models that are not a LightningModule do not need them
        warnings.warn(f"checkpoints of this release of Lightning will not contain SimAM: {error!r}", stacklevel=4)
        return Adapter()
    return adapter


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter for this object; its integration is imported if it has not been."""
    lightning = _load(_LIGHTNING) if _is_imported(_LIGHTNING) else Adapter()  # whatever it is may be a part of a module
    for base in type(model).__mro__:
        integration = _INTEGRATIONS.get(base.__module__)
        if integration is not None:
            return _load(integration)
    if any(type(part).__module__.startswith("ultralytics.") for part in model.modules()):  # a part of a network
        return Adapter(_load(_ULTRALYTICS).integration)
    return lightning


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a library's object such as `YOLO`, or the model itself; a `ModelError` if there is none.

    Restores hooks that another tool dropped, so that a function sees the same sites as the next forward.
    """
    network = adapter_of(check_module(model)).network(model)
    restore_hooks(network)
    return network


def update(model: nn.Module) -> None:
    """Write the current sites to where the library looks for them; see `Adapter.update`."""
    adapter_of(model).update(model)


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a function of a class or module by `around(function, *arguments)`, once for the process.

    For libraries without a point of extension where one is needed.
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
