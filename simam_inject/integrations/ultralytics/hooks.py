"""The names of `ultralytics.nn.tasks` that are wrapped, since the library has no point of extension for them.

* `__init__` of every network class: a network whose yaml has a record comes out injected;
* `BaseModel.load`: the sites are what they were before;
* `BaseModel.fuse` and `is_fused`: see `fusing`;
* `torch_safe_load`: a checkpoint with a record but without its sites is reported;
* `generate_ddp_command`, in releases whose multi-GPU workers start from a file: see `training`.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from ultralytics.engine import trainer as engine_trainer
from ultralytics.nn import tasks

from simam_inject.integrations.ultralytics.fusing import shielded
from simam_inject.integrations.ultralytics.presence import key_of, missing_sites
from simam_inject.integrations.ultralytics.record import Record, has_record, read, write
from simam_inject.integrations.ultralytics.training import check_launch, hands_network_to_workers
from simam_inject.rewriting.classes import is_injected

_MARK = "_simam_original"
_installing = threading.Lock()
_construction = threading.local()


def install() -> None:
    """Wrap the names, once for the process."""
    with _installing:
        for network_class in (tasks.BaseModel, *_subclasses(tasks.BaseModel)):
            if "__init__" in vars(network_class):
                _wrap(network_class, "__init__", _building)
        _wrap(tasks.BaseModel, "load", _loading)
        _wrap(tasks.BaseModel, "fuse", _shielding)
        _wrap(tasks.BaseModel, "is_fused", _shielding)
        _wrap(tasks, "torch_safe_load", _reporting)
        if not hands_network_to_workers():
            _wrap(engine_trainer, "generate_ddp_command", _launching)


def uninstall() -> None:
    """Give the names back."""
    with _installing:
        for owner in (tasks, engine_trainer, tasks.BaseModel, *_subclasses(tasks.BaseModel)):
            for name, value in list(vars(owner).items()):
                if hasattr(value, _MARK):
                    setattr(owner, name, getattr(value, _MARK))


def _wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = vars(owner)[name]
    if not hasattr(original, _MARK):
        wrapped = functools.wraps(original)(make(original))
        setattr(wrapped, _MARK, original)
        setattr(owner, name, wrapped)


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
            _apply_record(self)

    return build


def _apply_record(network: nn.Module) -> None:
    """Random numbers are not drawn, so the initial weights are those of an uninjected network."""
    from simam_inject.rewriting.provenance import set_recipes
    from simam_inject.surgery import inject, injected, replay

    record = read(network)
    if isinstance(record, Record):
        replay(network, record.sites)
        set_recipes(network, (record.recipe,))
        write(network, Record(record.recipe, injected(network)))
    else:
        inject(network, record, verify=False)


def _loading(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        from simam_inject.surgery import injected, replay

        before = injected(self)
        result = original(self, *args, **kwargs)
        if {key_of(site) for site in injected(self)} != {key_of(site) for site in before}:
            # Modules of the source took the place of its own, with the source's sites or without any.
            replay(self, before)
        return result

    return load


def _shielding(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not any(is_injected(module) for module in self.modules()):
            return original(self, *args, **kwargs)
        with shielded(self):
            return original(self, *args, **kwargs)

    return run


def _reporting(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(*args: Any, **kwargs: Any) -> Any:
        checkpoint, file = original(*args, **kwargs)
        network = (checkpoint.get("ema") or checkpoint.get("model")) if isinstance(checkpoint, dict) else None
        if isinstance(network, nn.Module) and has_record(network):
            _report_missing(network, file)
        return checkpoint, file

    return load


def _launching(original: Callable[..., Any]) -> Callable[..., Any]:
    def launch(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        check_launch(trainer)
        return original(trainer, *args, **kwargs)

    return launch


def _report_missing(network: nn.Module, file: Any) -> None:
    record = read(network)
    missing = missing_sites(network, record.sites) if isinstance(record, Record) else []
    if isinstance(record, Record) and missing:
        warnings.warn(
            f"{file} records SimAM at {len(record.sites)} sites and lacks {len(missing)} of them, first "
            f"{missing[0].path}: it runs without. inject(YOLO(...), recipe) puts them back.",
            stacklevel=4,
        )
