"""A warning for weights that were trained with SimAM and meet a model without it.

The `state_dict` of an injected model has the keys of a plain one, so `load_state_dict` is content. But torch attaches a
table `_metadata` to it that names every module, and so every SimAM, and `torch.save` keeps that table. A watched model
compares the table with itself before it loads.

What this cannot see: a plain `dict` of tensors (`safetensors.torch.load_file`, a dict comprehension, most EMA helpers)
has no such table; and a program that never imports this package watches nothing. Only `save` and `load` are sure.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from torch import nn

from simam_inject.attention import SimAM

_CHILD = re.compile(r"simam(_\w+)?")
_SHOWN = 3
_warned: WeakSet[nn.Module] = WeakSet()


class LostRecipeWarning(UserWarning):
    """Weights that were trained with SimAM were loaded into a model without it."""


def watch(model: nn.Module | None = None) -> None:
    """Warn once when weights of an injected model are loaded into a model that lacks its SimAM.

    Args:
        model: to watch, by a `load_state_dict` pre-hook of its own. None: every model of this process, by wrapping
            `nn.Module.load_state_dict`; for the start of a program that loads weights.
    """
    if model is None:
        _watch_all()
    elif not _hooks_of(model):
        model.register_load_state_dict_pre_hook(_check)  # type: ignore[no-untyped-call]


def unwatch(model: nn.Module | None = None) -> None:
    """Undo `watch` with the same argument."""
    if model is None:
        plain = getattr(nn.Module.load_state_dict, "_simam_plain", None)
        if plain is not None:
            nn.Module.load_state_dict = plain  # type: ignore[method-assign]
        return
    for number in _hooks_of(model):
        del model._load_state_dict_pre_hooks[number]


def lost_sites(model: nn.Module, state_dict: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the SimAM modules that the state dict's model had and this one has not."""
    table = getattr(state_dict, "_metadata", None)
    if not isinstance(table, Mapping):
        return ()
    named = [path for path in table if isinstance(path, str) and _CHILD.fullmatch(path.rpartition(".")[2])]
    present = {path for path, module in model.named_modules() if isinstance(module, SimAM)} if named else set()
    return tuple(path for path in named if path not in present)


def _hooks_of(model: nn.Module) -> list[int]:
    """Numbers of our hooks; torch wraps the function that was registered."""
    hooks = model._load_state_dict_pre_hooks.items()
    return [number for number, hook in hooks if getattr(hook, "hook", None) is _check]


def _check(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """As torch calls a pre-hook. Only the model that is loaded as a whole is checked, not a part of it."""
    if not prefix:
        _warn(module, state_dict, stacklevel=7)


def _warn(model: nn.Module, state_dict: Mapping[str, Any], stacklevel: int) -> None:
    lost = lost_sites(model, state_dict)
    if not lost or model in _warned:
        return
    _warned.add(model)
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    warnings.warn(
        f"these weights were trained with SimAM at {len(lost)} places that this {type(model).__name__} lacks "
        f"({', '.join(lost[:_SHOWN])}{more}): it will load them and compute something else. Call "
        "simam_inject.inject(model, recipe) with their recipe, or use simam_inject.persist.save and load",
        LostRecipeWarning,
        stacklevel=stacklevel,
    )


def _watch_all() -> None:
    plain = nn.Module.load_state_dict
    if hasattr(plain, "_simam_plain"):
        return

    @functools.wraps(plain)
    def load_state_dict(self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        _warn(self, state_dict, stacklevel=3)
        return plain(self, state_dict, *args, **kwargs)

    load_state_dict._simam_plain = plain  # type: ignore[attr-defined]
    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
