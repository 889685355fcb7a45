"""Add SimAM to a model, switch it off, and remove it again: all sites, or none if an error is raised."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Self, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from simam_inject.attention import SimAM
from simam_inject.editing.hooks import Hook, InputHook, OutputHook, SiteHook, all_hooks, guard_hooks, hooks_on
from simam_inject.editing.presence import Presence, distance_to_end
from simam_inject.editing.rewrite import RewrittenMethod
from simam_inject.editing.serialization import ExampleRecord, checked
from simam_inject.errors import FileError, ModelError, a_type
from simam_inject.modules import CONTAINERS, is_taken
from simam_inject.planning.insertions import Insertion, Output

Factory = Callable[[int], nn.Module]
"""Makes an attention module for a number of channels."""


@dataclass(frozen=True, slots=True)
class Attended:
    """One site that is in a model now."""

    holder: nn.Module
    site: Insertion
    """As it was planned, with paths from this model."""

    @property
    def attention(self) -> nn.Module | None:
        """The module that attends; None if it was removed."""
        return self.holder._modules.get(self.site.child)

    @property
    def insertion(self) -> Insertion:
        """The site with what is set on its attention now."""
        names = ("e_lambda", "strength", "gain") if isinstance(self.attention, SimAM) else ()
        now: dict[str, Any] = {name: float(getattr(self.attention, name)) for name in names}
        return replace(self.site, **now)


def attended_in(model: nn.Module) -> Iterator[Attended]:
    """Every site of a model in module order."""
    for path, module in model.named_modules():
        for hook in hooks_on(module):
            for site in hook.sites:
                yield Attended(module, site if site.edit.module == path else _seen_from(site, path))


def simams_in(model: nn.Module) -> list[tuple[Insertion, SimAM]]:
    """The sites of a model that have SimAM, not another attention."""
    return [(entry.site, entry.attention) for entry in attended_in(model) if isinstance(entry.attention, SimAM)]


def _seen_from(site: Insertion, holder: str) -> Insertion:
    """The site with paths from another root: a network around the part that was injected, a part of the network, or the
    same network with a part that was wrapped or moved.

    Args:
        holder: path of the holder from that root.
    """
    old, new = site.edit.module.split("."), holder.split(".")
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    prefix, other = ".".join(old), ".".join(new)

    def moved(path: str) -> str:
        if prefix and not re.match(rf"{re.escape(prefix)}([.:[]|$)", path):
            return path
        rest = path[len(prefix) :].removeprefix(".")
        return f"{other}{rest}" if rest[:1] in (":", "[") else f"{other}.{rest}".strip(".")

    reader = site.reader and moved(site.reader)
    witness = site.witness and moved(site.witness)
    witness = None if witness == site.witness else witness  # beside the holder: it may have been moved otherwise
    edit, module = replace(site.edit, module=holder), f"{holder}.{site.child}".lstrip(".")
    return replace(site, edit=edit, module=module, path=moved(site.path), reader=reader, witness=witness)


def attach(
    model: nn.Module,
    sites: Sequence[Insertion],
    *,
    recipes: list[dict[str, Any]],
    example: dict[str, Any] | None = None,
    factory: Factory | None = None,
    reuse: bool = False,
) -> None:
    """Replace the sites of a model by these. If an error is raised, the model is unchanged.

    Args:
        model: the root; changed in place.
        sites: as planned or read from a file; nothing is run or traced.
        recipes: what the sites were planned from, as dicts.
        example: shapes of the example's arguments, for a later `verify`.
        factory: makes another attention module than SimAM.
        reuse: keep the SimAM modules that the model has at these sites, with their attributes and hooks.

    Raises:
        ModelError: a holder is missing, or cannot hold a SimAM.
    """
    modules = dict(model.named_modules(remove_duplicate=False))  # a path of a file is looked up, and runs no property
    attentions = _attentions(model, modules, sites, factory, reuse)
    parts: dict[str, _Part] = {}
    by_hook: dict[tuple[str, str, str | None], list[Insertion]] = defaultdict(list)
    for site, attention in zip(sites, attentions, strict=True):
        path, expression = site.edit.module, site.expression
        parts.setdefault(path, _Part(modules[path], [], {})).children[site.child] = attention
        by_hook[path, site.edit.kind, expression.method if expression else None].append(site)
    holders: list[tuple[tuple[str, ...], SiteHook, int, list[tuple[str, ...]]]] = []
    for (path, *_), here in by_hook.items():
        hook, names = _hook(modules[path], here), tuple(filter(None, path.split(".")))
        parts[path].hooks.append(hook)
        witnesses = [tuple(site.witness.split(".")) for site in here if site.witness]
        holders.append((names, hook, distance_to_end(model, names, here), witnesses))
    if holders:
        presence = Presence.made(
            holders=holders,
            recipes=recipes,
            example=_written(example),
            peers=[site.path for site, made in zip(sites, attentions, strict=True) if not isinstance(made, SimAM)],
        )
        parts.setdefault("", _Part(model, [], {})).hooks.append(presence)
    try:
        _exchange(model, list(parts.values()))
    finally:
        guard_hooks()
        torch.compiler.reset()


def detach(model: nn.Module) -> None:
    """Remove every SimAM, every hook and the presence check from a model.

    The presence check of a model around it forgets these sites at its next forward.
    """
    hooks = [hook for part in _parts(model) for hook in part.hooks if isinstance(hook, SiteHook)]
    strip(model)
    for hook in hooks:
        hook.is_ejected = True
    torch.compiler.reset()


def _attentions(
    model: nn.Module, modules: dict[str, nn.Module], sites: Sequence[Insertion], factory: Factory | None, reuse: bool
) -> list[nn.Module]:
    """The attention modules of the sites, in order: those that are there, or new ones."""
    present = {(id(part.module), name): child for part in _parts(model) for name, child in part.children.items()}
    found: list[nn.Module] = []
    for site in sites:
        path = site.edit.module
        holder = modules.get(path)
        if holder is None:
            raise ModelError(
                f"{type(model).__name__} has no module {path!r}, which should have the SimAM at {site.name}"
            )
        if isinstance(holder, (*CONTAINERS, torch.jit.ScriptModule)):
            raise ModelError(f"{path} is a {type(holder).__name__}, which cannot have a SimAM as a child")
        there = present.get((id(holder), site.child))
        if there is None and is_taken(holder, site.child):
            raise ModelError(f"{path or 'the model'} has an attribute {site.child!r} already")
        attention = there if reuse and there is not None else _new_attention(holder, model, site, factory)
        if any(attention is other for other in found):
            raise ModelError("attention must return a new module for each site; it returned the same one twice")
        found.append(attention)
    return found


def _new_attention(holder: nn.Module, model: nn.Module, site: Insertion, factory: Factory | None) -> nn.Module:
    if factory is None:
        own = SimAM(site.e_lambda, channel_dim=site.channel_dim)
        own.strength, own.gain = site.strength, site.gain
        return own.train(holder.training)
    attention: Any = factory(site.shape[site.channel_dim])
    is_plain = isinstance(attention, nn.Module) and not isinstance(attention, torch.jit.ScriptModule)
    tensors = (*attention.parameters(), *attention.buffers()) if is_plain else ()
    if not is_plain or any(is_lazy(tensor) or tensor.is_meta for tensor in tensors):
        needed = "attention must return an nn.Module in plain Python for a number of channels, and no lazy or meta one"
        raise ModelError(f"{needed}; at {site.name} it returned {a_type(attention)}")
    tensor = next((p for p in [*holder.parameters(), *model.parameters()] if p.is_floating_point()), None)
    if tensor is not None:
        attention.to(tensor.device, tensor.dtype)
    attention.train(holder.training)
    return cast(nn.Module, attention)


def _hook(module: nn.Module, sites: list[Insertion]) -> SiteHook:
    """The hook for sites of one kind on one module."""
    edit, expression = sites[0].edit, sites[0].expression
    if isinstance(edit, Output):
        is_conv = isinstance(module, nn.modules.conv._ConvNd)
        return OutputHook.made(sites=sites, has_bias=getattr(module, "bias", None) is not None if is_conv else None)
    if expression is None:
        return InputHook.made(sites=sites)
    if not isinstance(vars(module).get(expression.method), (RewrittenMethod, type(None))):
        name = edit.module or "the model"
        raise ModelError(
            f"{expression.method} of {name} was set on the instance, and cannot be rewritten: call eject(model), "
            "delete it, inject, and set it after that"
        )
    return RewrittenMethod.of(module, expression.method, sites)


def _written(example: dict[str, Any] | None) -> dict[str, Any] | None:
    """An example that a file can hold; None for any other, which `verify` has to be given again."""
    try:
        found: dict[str, Any] | None = checked(ExampleRecord | None, example, "the example")
    except FileError:
        return None
    # Named tuples and other subclasses are read as plain ones, with which the forward may take another way.
    return found if pytree.tree_structure(found) == pytree.tree_structure(example) else None


@dataclass(frozen=True, slots=True)
class _Part:
    """What this package has added to one module."""

    module: nn.Module
    hooks: list[Hook]
    children: dict[str, nn.Module | None]

    def remove(self) -> None:
        for hook in self.hooks:
            hook.take_off(self.module)
        for name in self.children:
            self.module._modules.pop(name, None)

    def add(self) -> None:
        self.module._modules.update(self.children)
        for hook in self.hooks:
            hook.put_on(self.module)


def _parts(model: nn.Module) -> list[_Part]:
    """What is in a model, including SimAMs whose hook was dropped."""
    found, expected = [], defaultdict[int, set[str]](set)
    for module in list(model.modules()):
        hooks = all_hooks(module)
        for hook in hooks:  # a part may have been injected by itself
            for holder, site in hook.children(module) if isinstance(hook, Presence) else ():
                expected[id(holder)].add(site.child)
        for name in (site.child for hook in hooks if isinstance(hook, SiteHook) for site in hook.sites):
            # `fuse_modules` moves the hook of an activation to the fused module, a Sequential, around it.
            for holder in module.children() if isinstance(module, CONTAINERS) else (module,):
                expected[id(holder)].add(name)
        children = {name: child for name, child in module._modules.items() if name in expected[id(module)]}
        if hooks or children:
            found.append(_Part(module, hooks, children))
    return found


def _exchange(model: nn.Module, parts: Sequence[_Part]) -> None:
    """Replace what this package has added to a model: all, or nothing if an error is raised."""
    before = _parts(model)
    try:
        for part in before:
            part.remove()
        for part in parts:
            part.add()
    except BaseException:
        for part in (*parts, *before):
            part.remove()
        for part in before:
            part.add()
        raise


def strip(model: nn.Module) -> None:
    """Remove every SimAM, hook and presence check, and leave compiled code as it is."""
    _exchange(model, [])


def restorer(model: nn.Module) -> Callable[[], None]:
    """A function that restores the attention of a model as it is now: the very same modules and hooks."""
    return partial(_exchange, model, _parts(model))


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """If an error is raised inside, restore the attention that the model had, and remove new attributes."""
    restore, attributes = restorer(model), set(vars(model))
    try:
        yield
    except BaseException:
        restore()
        for name in vars(model).keys() - attributes:  # the mark of an integration, and what a class sets in loading
            del vars(model)[name]
        raise


@contextmanager
def without_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager in which the model has no SimAM; restores the same ones afterwards."""
    restore = restorer(model)
    strip(model)
    try:
        yield model
    finally:
        restore()


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Every SimAM of the model, and of copies that are made inside, is the identity until the end."""
    modules: list[Any] = [entry.attention for entry in attended_in(model) if entry.attention is not None]
    bypass = _Bypass()
    with _LOCK:
        for module in modules:
            module._bypasses = (*getattr(module, "_bypasses", ()), bypass)
    try:
        yield
    finally:
        bypass.active = False
        with _LOCK:
            for module in modules:
                others = tuple(other for other in getattr(module, "_bypasses", ()) if other is not bypass)
                if others:
                    module._bypasses = others
                else:  # one module may be at several sites
                    vars(module).pop("_bypasses", None)


_LOCK = threading.Lock()
"""Several threads may bypass one model."""


class _Bypass:
    """One use of `bypassed`, which copies share; it is listed in `_bypasses` of each attention module."""

    active = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.active:
            raise ModelError("a model that is pickled inside bypass(model) would stay bypassed: leave it first")
        return SimpleNamespace, (), {"active": False}  # in a copy that was made inside
