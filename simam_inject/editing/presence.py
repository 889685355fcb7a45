"""The pre-hook of the root that raises if an edit was lost.

Other tools replace modules (`SyncBatchNorm.convert_sync_batchnorm`), fold norms (`fuse_modules`), fold branches
(`reparameterize`) or clear hooks. Before every forward the root looks whether each holder still has its SimAM and its
hook, and whether each *witness*, a norm that alone reads a site, is still a norm.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
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

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
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
_BEHIND = TypeAdapter(dict[int, int])


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
        self.behind: dict[int, int] = {}
        """For holders that attend the output of a container: how many of its children run from them on."""

    def note_containers(self, root: nn.Module) -> None:
        """Look where in their containers the holders stand."""
        for place, (path, hook) in enumerate(self.holders):
            if any(path and site["path"] == ".".join(path[:-1]) for site in hook.sites):
                self.behind[place] = _children_from(root, path)

    def __deepcopy__(self, memo: dict[int, Any]) -> Presence:
        """The copy watches the copies of the hooks; the records are the same."""
        twin = memo[id(self)] = Presence([], [], self.recipes, self.example)
        twin.holders = [(path, copy.deepcopy(hook, memo)) for path, hook in self.holders]
        twin.witnesses, twin.behind = list(self.witnesses), dict(self.behind)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a file holds. The hooks are checked by themselves, and may not be complete yet."""
        self.holders = checked(_HOLDERS, state.get("holders"), "the list of SimAM holders")
        self.witnesses = checked(_WITNESSES, state.get("witnesses"), "the list of norms beside SimAM")
        self.recipes = checked_recipes(state.get("recipes"))
        self.example = checked_example(state.get("example"))
        self.behind = checked(_BEHIND, state.get("behind"), "the places of SimAM in containers")

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
            if place in self.behind and _children_from(root, self.holders[place][0]) != self.behind[place]:
                container = ".".join(self.holders[place][0][:-1])
                raise ModelError(
                    f"the children of {container} have changed, so SimAM at {hook.sites[0]['path']} is no longer "
                    f"applied to its output; {ADVICE}"
                )
            if isinstance(hook, RewrittenMethod):
                if module.__dict__.get(hook.method) is not hook or hook.owner is not module:
                    _rebind(module, hook, is_root=module is root)
            else:
                table, key = _KEYS[type(hook)]
                if getattr(module, table).get(key) is not hook and _mend(module, hook):
                    mended.append(hook.sites[0]["path"])
        for path, site_path in self.witnesses:
            if not _is_norm_at(root, path):
                norm = _module_at(root, path)
                became = "was removed" if norm is None else f"was replaced by a {type(norm).__name__}"
                raise ModelError(
                    f"the norm {'.'.join(path)} {became}, so it may have been folded across the SimAM at {site_path}; "
                    f"{ADVICE}"
                )
        if mended:
            warnings.warn(
                f"the hooks of {len(mended)} SimAM modules ({mended[0]}, ...) had been dropped from their modules, "
                "and were put back",
                stacklevel=2,
            )

    def children(self, root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Every attention module of the root, with or without its hook: its holder and its name."""
        for path, hook in self.holders:
            module = _module_at(root, path)
            if module is None:
                continue
            for site in hook.sites:
                if module._modules.get(site["child"]) is not None:
                    yield module, site["child"]

    def _follow(self, root: nn.Module, place: int, hook: _Hook) -> Any:
        """Where a holder stands now that was wrapped, or moved inside its container; its path is written down anew.

        One that another module has replaced, and that is only kept somewhere, does not count.
        """
        old = self.holders[place][0]
        for path, module in root.named_modules():
            parts = tuple(path.split(".")) if path else ()
            if not (any(one is hook for one in _hooks_on(module)) and _holds(module, hook)):
                continue
            if _is_moved(root, old, parts) or _is_wrapped(old, parts):
                self.holders[place] = parts, hook
                own = {site["path"] for site in hook.sites}
                self.witnesses = [
                    (_moved_along(root, old, parts, witness) if site in own else witness, site)
                    for witness, site in self.witnesses
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


def _is_moved(root: nn.Module, old: tuple[str, ...], new: tuple[str, ...]) -> bool:
    """The paths differ only in names that containers give, as after `insert` and `del`."""
    differs = [place for place, names in enumerate(zip(old, new, strict=False)) if names[0] != names[1]]
    return len(old) == len(new) and all(isinstance(_module_at(root, new[:place]), _CONTAINERS) for place in differs)


def _is_wrapped(old: tuple[str, ...], new: tuple[str, ...]) -> bool:
    """The new path is the old one with more names in between: a module of the path was put into another."""
    starts = range(len(old) + 1) if len(new) > len(old) else ()
    return any(new[:start] == old[:start] and new[len(new) - len(old) + start :] == old[start:] for start in starts)


def _moved_along(root: nn.Module, old: tuple[str, ...], new: tuple[str, ...], path: tuple[str, ...]) -> tuple[str, ...]:
    """Where a norm stands now: it went the way of the module before it, or into the same wrapper, as QAT fuses."""
    beside = (*new[:-1], str(int(new[-1]) + 1)) if new and new[-1].isdigit() else path
    found = [beside, path]
    for start in range(len(old)):
        if new[:start] != old[:start] or path[:start] != old[:start] or len(path) <= start:
            break
        added = len(new) - len(old)
        if added > 0 and new[added + start :] == old[start:]:  # wrapped
            found.append((*path[:start], *new[start : start + added], *path[start:]))
        elif not added and new[start] != old[start] and all(n[start].isdigit() for n in (old, new, path)):
            moved = int(path[start]) + int(new[start]) - int(old[start])
            found.append((*path[:start], str(moved), *path[start + 1 :]))
    return next((place for place in reversed(found) if _is_norm_at(root, place)), path)


def _is_norm_at(root: nn.Module, path: tuple[str, ...]) -> bool:
    module = _module_at(root, path)
    return module is not None and is_norm(module)


def _children_from(root: nn.Module, path: tuple[str, ...]) -> int:
    """How many modules of its container run from the one at a path on, itself included."""
    container = _module_at(root, path[:-1])
    if not isinstance(container, nn.Sequential) or path[-1] not in container._modules:
        return 0
    return len(container._modules) - list(container._modules).index(path[-1])


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
    """Restore a hook that a tool dropped while it kept the SimAM, as `convert_sync_batchnorm` does."""
    if any(type(one) is type(hook) for one in _hooks_on(module)):  # under another key, or a copy of it
        return False
    if torch.compiler.is_compiling():  # hooks cannot be added to a model while it is compiled
        raise ModelError(_lost(hook.sites[0], "its hook was removed"))
    if isinstance(hook, OutputHook):
        add_output_hook(module, hook)
    else:
        add_input_hook(module, hook)
    return True


def _rebind(module: nn.Module, hook: RewrittenMethod, *, is_root: bool) -> None:
    """A shallow copy of a module (as DataParallel makes) shares the method, which has to run on the copy."""
    bound = module.__dict__.get(hook.method)
    if not isinstance(bound, RewrittenMethod):
        raise ModelError(_lost(hook.sites[0], f"{hook.method} of its module was replaced by another function"))
    if bound.owner is not module and is_root and hook.method == "forward":  # it was looked up before this check
        raise ModelError("a shallow copy of this model would run the forward of the original; use copy.deepcopy")
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
