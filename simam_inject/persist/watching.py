"""A warning when weights that were trained with SimAM are loaded into a model without it.

torch adds a table `_metadata` to a `state_dict`, which names every module and so every SimAM, and `torch.save` writes
it as well. A watched model is compared with the table before it loads. A plain dict of tensors has no such table.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from simam_inject.errors import shortened
from simam_inject.modules import check_module


class LostRecipeWarning(UserWarning):
    """Weights that were trained with SimAM were loaded into a model without it."""


def watch(model: nn.Module) -> None:
    """Warn when weights of an injected model are loaded into this model while it lacks their SimAM.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18()
        >>> watch(model)
        >>> model.load_state_dict(torch.load("injected.pth"))  # doctest: +SKIP
        LostRecipeWarning: these weights were trained with SimAM (or another attention) at 8 sites that this ...
    """
    unwatch(model)
    model.register_load_state_dict_pre_hook(_check)  # type: ignore[no-untyped-call]


def unwatch(model: nn.Module) -> None:
    """Undo `watch`."""
    hooks = check_module(model)._load_state_dict_pre_hooks
    for number in [number for number, hook in hooks.items() if getattr(hook, "hook", None) is _check]:  # torch wraps it
        del hooks[number]


def _check(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """As torch calls a pre-hook. Only the model that is loaded as a whole is checked, not a part of it."""
    if not prefix:
        advice = "simam_inject.inject(model, recipe) with their recipe, or use simam_inject.persist.save and load"
        warn_of_lost(module, state_dict, f"Call {advice}", stacklevel=7)


def warn_of_lost(module: nn.Module, state_dict: Mapping[str, Any], advice: str, *, stacklevel: int) -> None:
    """Warn of attention that the table of a `state_dict` names and a module lacks; advice says what to do then."""
    table = getattr(state_dict, "_metadata", None)
    present = {path for path, _ in module.named_modules(remove_duplicate=False)}
    paths = [str(path) for path in table if path not in present] if isinstance(table, Mapping) else []
    lost = [path for path in paths if re.fullmatch(r"(.*\.)?simam(_\w+)?", path)]
    if lost:
        warnings.warn(
            f"these weights were trained with SimAM (or another attention) at {len(lost)} sites that this "
            f"{type(module).__name__} lacks ({shortened(lost, 3)}): it will compute something else. {advice}",
            LostRecipeWarning,
            stacklevel=stacklevel,
        )
