"""A warning for weights that were trained with SimAM and meet a model without it.

torch attaches a table `_metadata` to a `state_dict` that names every module, and so every SimAM, and `torch.save` keeps
it. A watched model compares the table with itself before it loads. A plain dict of tensors has no such table.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from simam_inject.attention import SimAM

_CHILD = re.compile(r"simam(_\w+)?")
_SHOWN = 3


class LostRecipeWarning(UserWarning):
    """Weights that were trained with SimAM were loaded into a model without it."""


def watch(model: nn.Module) -> None:
    """Warn when weights of an injected model are loaded into this model while it lacks their SimAM."""
    if not _hooks_of(model):
        model.register_load_state_dict_pre_hook(_check)  # type: ignore[no-untyped-call]


def unwatch(model: nn.Module) -> None:
    """Undo `watch`."""
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
    lost = () if prefix else lost_sites(module, state_dict)
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        warnings.warn(
            f"these weights were trained with SimAM at {len(lost)} places that this {type(module).__name__} lacks "
            f"({', '.join(lost[:_SHOWN])}{more}): it will compute something else. Call "
            "simam_inject.inject(model, recipe) with their recipe, or use simam_inject.persist.save and load",
            LostRecipeWarning,
            stacklevel=6,
        )
