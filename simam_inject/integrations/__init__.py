"""Libraries whose models live inside an object of their own, or need more than a rewritten forward to keep it.

Each adapter is one file, imported only when a model of its library is met.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, cast

from torch import nn

if TYPE_CHECKING:
    from simam_inject.planning.plan import Plan

_ULTRALYTICS = ("ultralytics.engine.model", "ultralytics.nn.tasks")
"""Where `YOLO` objects and their networks are defined."""


class Host(Protocol):
    """What an adapter module offers for a library's network, or for an object that holds one."""

    def network(self, model: nn.Module) -> nn.Module:
        """The network inside the object; a network itself."""

    def remember(self, model: nn.Module, plan: Plan) -> None:
        """Called after a plan was applied: keep the injection through whatever the library does with the network."""

    def forget(self, model: nn.Module) -> None:
        """Called after eject: leave no trace of an injection."""

    def refresh(self, model: nn.Module) -> None:
        """Called when the network computes something else than before: drop what the library copied from it."""

    def deployed(self, model: nn.Module) -> Iterator[nn.Module]:
        """Copies of the network in the forms that the library exports."""


def host_of(model: nn.Module) -> Host | None:
    """The adapter for this object; None for a plain network."""
    if any(base.__module__ in _ULTRALYTICS for base in type(model).__mro__):
        from simam_inject.integrations import ultralytics

        return cast(Host, ultralytics)
    return None


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a library's own object; the model itself if it is one."""
    host = host_of(model)
    return model if host is None else host.network(model)


def deployed_forms(model: nn.Module) -> Iterator[nn.Module]:
    """The network as its library may export it, copies; nothing for a plain network, which is exported as it is."""
    host = host_of(model)
    if host is not None:
        yield from host.deployed(model)


def refresh(model: nn.Module) -> None:
    """Let the library's own object forget the copies that it made of its network; see `Host.refresh`."""
    host = host_of(model)
    if host is not None:
        host.refresh(model)
