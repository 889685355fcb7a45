"""What ultralytics' networks do differently once this package is imported, since the library has no point of extension.

* `__init__` of every network class: a network whose yaml has a record comes out injected;
* `BaseModel.load`: the sites are what they were before;
* `BaseModel.fuse` and `is_fused`: see `fusing`;
* `torch_safe_load`: a checkpoint with a record but without its sites is reported.

Networks without a record and without SimAM are handed on to the library as they are.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from ultralytics.nn import tasks

from simam_inject.adapters import remember
from simam_inject.api import inject
from simam_inject.attention import SimAM
from simam_inject.editing.attach import attended_in
from simam_inject.editing.presence import presence_of
from simam_inject.integrations.ultralytics.fusing import prune_presence, shielded
from simam_inject.integrations.ultralytics.record import has_record, missing_sites, read, recorded
from simam_inject.integrations.wrapping import unwrap, wrap
from simam_inject.persist.record import Record

_construction = threading.local()


def install() -> None:
    """Wrap the names, once for the process."""
    for network_class in (tasks.BaseModel, *_subclasses(tasks.BaseModel)):
        if "__init__" in vars(network_class):
            wrap(network_class, "__init__", _building)
    wrap(tasks.BaseModel, "load", _loading)
    wrap(tasks.BaseModel, "fuse", _fusing)
    wrap(tasks.BaseModel, "is_fused", _fusing)
    wrap(tasks, "torch_safe_load", _reporting)


def uninstall() -> None:
    """Give the names back."""
    for owner in (tasks, tasks.BaseModel, *_subclasses(tasks.BaseModel)):
        unwrap(owner)


def _subclasses(base: Any) -> Iterator[Any]:
    for child in base.__subclasses__():
        yield child
        yield from _subclasses(child)


def _building(original: Callable[..., None]) -> Callable[..., None]:
    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        under_way: list[nn.Module] = _construction.__dict__.setdefault("under_way", [])
        is_inner = any(network is self for network in under_way)  # a base class of the one that is being built
        under_way.append(self)
        try:
            original(self, *args, **kwargs)
        finally:
            under_way.pop()
        if not is_inner and has_record(self):
            found = read(self)
            if isinstance(found, Record):  # no random number is drawn: the initial weights are an uninjected network's
                found.attach_to(self)
                remember(self)
            else:
                inject(self, found, verify=False)

    return build


def _loading(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = [entry.attention for entry in attended_in(self)]
        record = Record.of(self) if all(isinstance(part, SimAM) for part in before) else None
        result = original(self, *args, **kwargs)
        after = [entry.attention for entry in attended_in(self)]
        if record is not None and not (len(before) == len(after) and all(map(operator.is_, before, after))):
            record.attach_to(self)  # modules of the source took the place of its own, with its sites or without any
        return result

    return load


def _fusing(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if presence_of(self) is None:
            return original(self, *args, **kwargs)
        with shielded(self):
            result = original(self, *args, **kwargs)
        prune_presence(self)
        return result

    return run


def _reporting(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(*args: Any, **kwargs: Any) -> Any:
        checkpoint, file = original(*args, **kwargs)
        network = (checkpoint.get("ema") or checkpoint.get("model")) if isinstance(checkpoint, dict) else None
        record = recorded(network)
        missing = missing_sites(network, record.sites) if record and isinstance(network, nn.Module) else []
        if record and missing:
            warnings.warn(
                f"{file} records SimAM at {len(record.sites)} sites and lacks {len(missing)} of them, first "
                f"{missing[0]['path']}: it runs without them. Call inject(YOLO(...), recipe) to restore them.",
                stacklevel=3,
            )
        return checkpoint, file

    return load
