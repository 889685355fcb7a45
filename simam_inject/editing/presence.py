"""The pre-hook on the root that notices a lost edit: no SimAM disappears without an error.

Other tools replace modules (`SyncBatchNorm.convert_sync_batchnorm`), fold norms (`fuse_modules`), fold branches
(`reparameterize`) or clear hooks. Before every forward the root looks whether each holder still has its SimAM and its
hook, and whether each *witness*, a norm that alone reads a site, is still a norm.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from simam_inject.editing.hooks import (
    ADVICE,
    INPUT_HOOK,
    OUTPUT_HOOK,
    InputHook,
    OutputHook,
    add_input_hook,
    add_output_hook,
    input_hook,
    output_hook,
)
from simam_inject.editing.records import SiteRecord
from simam_inject.editing.rewrite import RewrittenMethod
from simam_inject.errors import ModelError

PRESENCE = "simam_presence"
_KEYS: dict[type, tuple[str, str]] = {
    OutputHook: ("_forward_hooks", OUTPUT_HOOK),
    InputHook: ("_forward_pre_hooks", INPUT_HOOK),
}
_Hook = OutputHook | InputHook | RewrittenMethod


class Presence:
    """Forward pre-hook of the root. Holds paths, hooks (which are data) and witnesses, and what an injection was made of.

    Attributes:
        holders: path of each holder with what stands on it.
        witnesses: path of each norm that must stay one, with the path of its site.
        recipes: the recipes that were applied, as dicts.
        example: the example's arguments, tensors as dtype and shape; None where they cannot be written down.
    """

    def __init__(
        self,
        holders: list[tuple[str, _Hook]],
        witnesses: list[tuple[str, str]],
        recipes: list[dict[str, Any]],
        example: dict[str, Any] | None,
    ) -> None:
        self.holders = [(tuple(path.split(".")) if path else (), hook) for path, hook in holders]
        self.witnesses = [(tuple(path.split(".")), site) for path, site in witnesses]
        self.recipes = recipes
        self.example = example

    def __call__(self, root: nn.Module, args: Any) -> None:
        """Check every edit.

        Raises:
            ModelError: one was lost; the message names it and says what to do.
        """
        for path, hook in self.holders:
            module: Any = root
            for name in path:
                module = module._modules.get(name)
                if module is None:
                    raise ModelError(_lost(hook.sites[0], f"{'.'.join(path)} is gone"))
            for site in hook.sites:
                if site["child"] not in module._modules:
                    raise ModelError(_lost(site, f"{'.'.join(path)} was replaced, or its SimAM removed"))
            if isinstance(hook, RewrittenMethod):
                bound = module.__dict__.get(hook.method)
                if bound is not hook or hook.owner is not module:
                    _rebind(module, hook, bound)
            else:
                table, key = _KEYS[type(hook)]
                if getattr(module, table).get(key) is not hook:
                    _mend(module, hook)
        for path, site_path in self.witnesses:
            module = root
            for name in path:
                module = module._modules.get(name)
                if module is None:
                    break
            if module is None or not is_norm(module):
                raise ModelError(
                    f"the norm {'.'.join(path)} was folded across the SimAM at {site_path}, so the output would be another; {ADVICE}"
                )


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer, of torch or with running statistics of its own."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return isinstance(module, kinds) or hasattr(module, "running_mean")


def _lost(site: SiteRecord, why: str) -> str:
    return f"SimAM at {site['path']} was lost: {why}; {ADVICE}"


def _mend(module: nn.Module, hook: OutputHook | InputHook) -> None:
    """Put back a hook that a tool dropped while it kept the SimAM, as `convert_sync_batchnorm` does."""
    found = output_hook(module) if isinstance(hook, OutputHook) else input_hook(module)
    if found is None:
        if isinstance(hook, OutputHook):
            add_output_hook(module, hook)
        else:
            add_input_hook(module, hook)
        warnings.warn(
            f"the hook of SimAM at {hook.sites[0]['path']} had been dropped from its module, and was put back", stacklevel=2
        )


def _rebind(module: nn.Module, hook: RewrittenMethod, bound: Any) -> None:
    """A shallow copy of a module (as DataParallel makes) shares the method, which has to run on the copy."""
    if not isinstance(bound, RewrittenMethod):
        raise ModelError(_lost(hook.sites[0], f"{hook.method} of its module was set to another function"))
    if bound.owner is not module:
        module.__dict__[hook.method] = RewrittenMethod(module, hook.method, hook.sites)


def presence_of(model: nn.Module) -> Presence | None:
    """The presence hook of a root."""
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Presence)), None)


def set_presence(model: nn.Module, presence: Presence | None) -> None:
    """Register the presence hook first, in the place of an earlier one; None takes it away."""
    for key in [key for key, hook in model._forward_pre_hooks.items() if isinstance(hook, Presence)]:
        del model._forward_pre_hooks[key]
    if presence is not None:
        model._forward_pre_hooks[PRESENCE] = presence  # type: ignore[index]
        model._forward_pre_hooks.move_to_end(PRESENCE, last=False)  # type: ignore[arg-type]


torch.serialization.add_safe_globals([Presence])
