"""The pre-hook of the root that raises if an edit was lost.

Other tools replace modules (`SyncBatchNorm.convert_sync_batchnorm`), fold norms (`fuse_modules`), fold branches
(`reparameterize`) or clear hooks. Before every forward the root looks whether each holder still has its SimAM and its
hook, and whether each *witness*, a norm that alone reads a site, is still a norm.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from pydantic import InstanceOf
from torch import nn
from typing_extensions import TypedDict  # that of `typing` needs Python 3.12

from simam_inject.editing.hooks import ADVICE, Hook, SiteHook, hooks_on, lost
from simam_inject.editing.serialization import ExampleRecord, Recipes, checked
from simam_inject.errors import ModelError, a_type
from simam_inject.modules import NORMS
from simam_inject.planning.insertions import Insertion, Output

_Path = tuple[str, ...]


class _State(TypedDict):
    holders: list[tuple[_Path, InstanceOf[SiteHook], int]]
    """Path of each holder, the hook on it, and its `distance_to_end`."""
    witnesses: list[tuple[_Path, str]]
    """Path of each norm that must stay one, with the path of its site."""
    recipes: Recipes
    """The recipes that were applied, as dicts."""
    example: ExampleRecord | None
    """The example's arguments, tensors as dtype and shape; None where they cannot be written down."""
    peers: list[str]
    """Paths of the sites that have another attention module than SimAM."""


class Presence(Hook):
    """First forward pre-hook of the root: what an injection was made of.

    Attributes and their checks are those of `_State`: data, but for a rewritten method, which refers to its module.
    """

    table, key, is_first = "_forward_pre_hooks", "simam_presence", True

    holders: list[tuple[_Path, SiteHook, int]]
    witnesses: list[tuple[_Path, str]]
    recipes: list[dict[str, Any]]
    example: dict[str, Any] | None
    peers: list[str]

    def __deepcopy__(self, memo: dict[int, Any]) -> Presence:
        """The copy watches the copies of the hooks; the records are the same."""
        twin = memo[id(self)] = Presence.made(**vars(self))
        twin.holders = [(path, copy.deepcopy(hook, memo), count) for path, hook, count in self.holders]
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | self._without_ejected()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a file holds. The hooks are checked by themselves, and may not be complete yet."""
        vars(self).update(checked(_State, state, "the list of SimAM sites"))

    def __call__(self, root: nn.Module, args: Any) -> None:
        """Check every edit.

        Raises:
            ModelError: one was lost; the message names it and says what to do.
        """
        mended = []
        for place, (path, hook, count) in enumerate(self.holders):
            module = _module_at(root, path)
            if module is None or not _holds(module, hook):
                if hook.is_ejected:
                    self._check_rest(root, args)
                    return
                module = self._follow(root, place)
            if count and distance_to_end(root, self.holders[place][0], hook.sites) != count:
                site = hook.sites[0]
                end = f"{site.reader} have changed: SimAM would not be applied to its input"
                if isinstance(site.edit, Output):
                    end = f"{site.path} have changed: SimAM would not be applied to its output"
                raise ModelError(f"the children of {end}; {ADVICE}")
            if not hook.is_on(module) and hook.mend(module, root):
                mended.append(hook.sites[0].path)
        for path, site_path in self.witnesses:
            if not _is_norm_at(root, path):
                norm = _module_at(root, path)
                became = "was removed" if norm is None else f"was replaced by {a_type(norm)}"
                raise ModelError(
                    f"the norm {'.'.join(path)} {became}, so it may have been folded across the SimAM at {site_path}; "
                    f"{ADVICE}"
                )
        _warn_of_restored(mended, stacklevel=6)  # the call of the model, past the frames of `nn.Module.__call__`

    def _check_rest(self, root: nn.Module, args: Any) -> None:
        """Check what is left once a part was ejected by itself; nothing is left to do once all were."""
        vars(self).update(self._without_ejected())
        if self.holders:
            self(root, args)
        elif not torch.compiler.is_dynamo_compiling():
            self.take_off(root)

    def _without_ejected(self) -> dict[str, Any]:
        """Holders and witnesses without those of parts that were ejected by themselves."""
        holders = [holder for holder in self.holders if not holder[1].is_ejected]
        there = {site.path for _, hook, _ in holders for site in hook.sites}
        return {"holders": holders, "witnesses": [one for one in self.witnesses if one[1] in there]}

    def children(self, root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Every attention module of the root, with or without its hook: its holder and its name."""
        for path, hook, _ in self.holders:
            module = _module_at(root, path)
            names = [site.child for site in hook.sites]
            yield from ((module, name) for name in names if module is not None and name in module._modules)

    def _follow(self, root: nn.Module, place: int) -> Any:
        """Find a holder that was wrapped, or moved inside its container, and record its new path.

        A holder that was replaced, and is only referenced from elsewhere, counts as lost.
        """
        old, hook, count = self.holders[place]
        for path, module in root.named_modules():
            parts = tuple(path.split(".")) if path else ()
            if any(one is hook for one in hooks_on(module)) and _holds(module, hook) and _is_moved(root, old, parts):
                self.holders[place] = parts, hook, count
                own = {site.path for site in hook.sites}
                self.witnesses = [
                    (_moved_along(root, old, parts, witness) if site in own else witness, site)
                    for witness, site in self.witnesses
                ]
                return module
        raise lost(hook.sites[0], f"{'.'.join(old) or 'the model'} was replaced, removed, or lost its SimAM")


def _module_at(root: nn.Module, path: _Path) -> nn.Module | None:
    module: nn.Module | None = root
    for name in path:
        if module is None or isinstance(module, torch.jit.ScriptModule):  # its code is compiled, hooks included
            return None
        module = module._modules.get(name)
    return module


def _is_moved(root: nn.Module, old: _Path, new: _Path) -> bool:
    """A path differs only in numbers, as after `insert` and `del`, or has more names in between, of a wrapper.

    Or it lacks names after the first one, since a wrapper was removed, which is not there any more.
    """
    if len(old) == len(new):
        return all(a == b or (a.isdigit() and b.isdigit()) for a, b in zip(old, new, strict=True))
    if len(new) < len(old):
        count = len(old) - len(new)
        cuts = [start for start in range(1, len(new) + 1) if new == _without(old, start, count)]
        return any(_module_at(root, old[: start + count]) is None for start in cuts)
    rest = iter(new)
    return all(name in rest for name in old)


def _without(path: _Path, start: int, count: int) -> _Path:
    return *path[:start], *path[start + count :]


def _moved_along(root: nn.Module, old: _Path, new: _Path, path: _Path) -> _Path:
    """New path of a norm: below what was moved or wrapped, or next to the module before it, as where QAT fuses both."""
    beside = (*new[:-1], str(int(new[-1]) + 1)) if new and new[-1].isdigit() else path
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    at, moved = len(old) - 1, path
    if path[: len(old)] == old:
        moved = (*new, *path[len(old) :])
    elif len(old) == len(new) and path[:at] == old[:at] and all(one[at].isdigit() for one in (old, new, path)):
        moved = (*new[:at], str(int(path[at]) + int(new[at]) - int(old[at])), *path[at + 1 :])
    return next((place for place in (moved, path, beside) if _is_norm_at(root, place)), path)


def _is_norm_at(root: nn.Module, path: _Path) -> bool:
    """Whether there is a normalization layer of torch, or a module with running statistics of its own."""
    module = _module_at(root, path)
    return isinstance(module, (*NORMS, nn.RMSNorm)) or hasattr(module, "running_mean")


def distance_to_end(root: nn.Module, path: _Path, sites: Sequence[Insertion]) -> int:
    """Number of children of a Sequential from the holder, itself included, to the end at which the sites are: the last
    child for an output, the first for an input. Summed over nested Sequentials; 0 for other sites.
    """
    found = 0
    for site in sites:
        is_output = isinstance(site.edit, Output)
        container = site.path.partition("[")[0] if is_output else site.reader
        names, outer = (tuple(each.split(".")) if each else () for each in (site.edit.module, container or ""))
        depth = len(names) - len(outer) if container is not None and names[: len(outer)] == outer else 0
        for end in range(len(path), len(path) - depth, -1):
            parent = _module_at(root, path[: end - 1])
            children = list(parent._modules) if isinstance(parent, nn.Sequential) else []
            if path[end - 1] in children:
                place = children.index(path[end - 1])
                found += len(children) - place if is_output else place + 1
    return found


def _holds(module: nn.Module, hook: SiteHook) -> bool:
    """Every SimAM of the hook is a child of the module."""
    return all(site.child in module._modules for site in hook.sites)


def presence_of(model: nn.Module) -> Presence | None:
    """The presence hook of a root; None if all parts with SimAM were ejected by themselves."""
    hooks = () if isinstance(model, torch.jit.ScriptModule) else model._forward_pre_hooks.values()
    found = next((hook for hook in hooks if isinstance(hook, Presence)), None)
    return found if found is not None and any(not hook.is_ejected for _, hook, _ in found.holders) else None


def presences_in(model: nn.Module) -> dict[str, Presence]:
    """The presence hooks of a model and of parts that were injected by themselves, by path."""
    return {path: own for path, part in model.named_modules() if (own := presence_of(part)) is not None}


def _warn_of_restored(sites: Sequence[str], *, stacklevel: int) -> None:
    if sites:
        warnings.warn(
            f"the hooks of {len(sites)} SimAM modules ({sites[0]}, ...) had been dropped from their modules, "
            "or registered twice, and were restored",
            stacklevel=stacklevel,
        )


def restore_hooks(model: nn.Module) -> None:
    """Restore hooks that a tool dropped while it kept their SimAM, as the next forward would."""
    mended = []
    for path, own in presences_in(model).items():
        root = model.get_submodule(path)
        for place, hook, _ in own.holders:
            module = _module_at(root, place)
            if module is not None and _holds(module, hook) and not hook.is_on(module):
                with suppress(ModelError):  # which the next forward raises
                    mended += [hook.sites[0].path] if hook.mend(module, root) else []
    _warn_of_restored(mended, stacklevel=5)  # the caller of a public function


def watched_in(model: nn.Module) -> int:
    """How many sites the presence check of a model watches."""
    found = presence_of(model)
    return sum(len(hook.sites) for _, hook, _ in found.holders if not hook.is_ejected) if found else 0


torch.serialization.add_safe_globals([Presence])
