"""The pre-hook on the root that notices a lost edit: no SimAM disappears without an error.

Other tools replace modules (`SyncBatchNorm.convert_sync_batchnorm`), fold norms (`fuse_modules`), fold branches
(`reparameterize`) or clear hooks. Before every forward the root looks whether each holder still has its SimAM and its
hook, and whether each *witness*, a norm that alone reads a site, is still a norm.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pydantic import InstanceOf, TypeAdapter
from torch import nn

from simam_inject.editing.checking import SiteRecord, checked, checked_example, checked_recipes
from simam_inject.editing.hooks import (
    ADVICE,
    INPUT_HOOK,
    OUTPUT_HOOK,
    InputHook,
    OutputHook,
    add_input_hook,
    add_output_hook,
)
from simam_inject.editing.rewrite import RewrittenMethod, rewritten_methods
from simam_inject.errors import ModelError

PRESENCE = "simam_presence"
_KEYS: dict[type, tuple[str, str]] = {
    OutputHook: ("_forward_hooks", OUTPUT_HOOK),
    InputHook: ("_forward_pre_hooks", INPUT_HOOK),
}
_Hook = OutputHook | InputHook | RewrittenMethod
_HOLDERS = TypeAdapter(
    list[tuple[tuple[str, ...], InstanceOf[OutputHook] | InstanceOf[InputHook] | InstanceOf[RewrittenMethod]]]
)
_WITNESSES = TypeAdapter(list[tuple[tuple[str, ...], str]])


class Presence:
    """Forward pre-hook of the root: paths, hooks (which are data), witnesses, and what an injection was made of.

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a copy or a file holds. The hooks are checked by themselves, and may not be complete yet."""
        self.holders = checked(_HOLDERS, state.get("holders"), "the list of SimAM holders")
        self.witnesses = checked(_WITNESSES, state.get("witnesses"), "the list of norms beside SimAM")
        self.recipes = checked_recipes(state.get("recipes"))
        self.example = checked_example(state.get("example"))

    def __call__(self, root: nn.Module, _args: Any) -> None:
        """Check every edit.

        Raises:
            ModelError: one was lost; the message names it and says what to do.
        """
        mended = []
        for place, (path, hook) in enumerate(self.holders):
            module = _module_at(root, path)
            if module is None or not _holds(module, hook):
                module = self._follow(root, place, hook)
            if isinstance(hook, RewrittenMethod):
                if module.__dict__.get(hook.method) is not hook or hook.owner is not module:
                    _rebind(module, hook)
            else:
                table, key = _KEYS[type(hook)]
                if getattr(module, table).get(key) is not hook and _mend(module, hook):
                    mended.append(hook.sites[0]["path"])
        for path, site_path in self.witnesses:
            module = _module_at(root, path)
            if module is None or not is_norm(module):
                raise ModelError(
                    f"the norm {'.'.join(path)} was folded across the SimAM at {site_path}, so the output would be "
                    f"another; {ADVICE}"
                )
        if mended:
            warnings.warn(
                f"the hooks of {len(mended)} SimAM modules ({mended[0]}, ...) had been dropped from their modules, "
                "and were put back",
                stacklevel=2,
            )

    def _follow(self, root: nn.Module, place: int, hook: _Hook) -> Any:
        """Where a holder stands now that was moved inside its container; its path is written down anew."""
        for path, module in root.named_modules():
            if any(one is hook for one in _hooks_on(module)) and _holds(module, hook):
                parts = tuple(path.split(".")) if path else ()
                old = self.holders[place][0]
                self.holders[place] = parts, hook
                self.witnesses = [
                    (witness, site) for witness, site in self.witnesses if witness[: len(old) - 1] != old[:-1]
                ]
                return module
        path = ".".join(self.holders[place][0])
        raise ModelError(_lost(hook.sites[0], f"{path or 'the model'} was replaced, removed, or lost its SimAM"))


def _module_at(root: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    module: nn.Module | None = root
    for name in path:
        if module is None:
            return None
        module = module._modules.get(name)
    return module


def _holds(module: nn.Module, hook: _Hook) -> bool:
    """Every SimAM of the hook is a child of the module."""
    return all(site["child"] in module._modules for site in hook.sites)


def _hooks_on(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *rewritten_methods(module)]


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer, of torch or with running statistics of its own."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return isinstance(module, kinds) or hasattr(module, "running_mean")


def _lost(site: SiteRecord, why: str) -> str:
    return f"SimAM at {site['path']} was lost: {why}; {ADVICE}"


def _mend(module: nn.Module, hook: OutputHook | InputHook) -> bool:
    """Put back a hook that a tool dropped while it kept the SimAM, as `convert_sync_batchnorm` does."""
    if any(type(one) is type(hook) for one in _hooks_on(module)):  # under another key, or a copy of it
        return False
    if torch.compiler.is_compiling():  # hooks cannot be added to a model while it is compiled
        raise ModelError(_lost(hook.sites[0], "its hook was removed"))
    if isinstance(hook, OutputHook):
        add_output_hook(module, hook)
    else:
        add_input_hook(module, hook)
    return True


def _rebind(module: nn.Module, hook: RewrittenMethod) -> None:
    """A shallow copy of a module (as DataParallel makes) shares the method, which has to run on the copy."""
    bound = module.__dict__.get(hook.method)
    if not isinstance(bound, RewrittenMethod):
        raise ModelError(_lost(hook.sites[0], f"{hook.method} of its module was replaced by another function"))
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
        model._forward_pre_hooks.move_to_end(PRESENCE, last=False)  # type: ignore[attr-defined]


torch.serialization.add_safe_globals([Presence])
