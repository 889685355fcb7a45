"""Add SimAM to a model and remove it again: all sites, or none if an error is raised."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from simam_inject.attention import SimAM
from simam_inject.editing.hooks import Hook, InputHook, OutputHook, SiteHook, all_hooks, guard_hooks, hooks_on
from simam_inject.editing.presence import Presence, distance_to_end, presences_in, watched_in
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
        is_inside = not prefix or re.match(rf"{re.escape(prefix)}([.:[]|$)", path)
        return _join(other, path[len(prefix) :].removeprefix(".")) if is_inside else path

    reader = site.reader and moved(site.reader)
    witness = site.witness and moved(site.witness)
    witness = None if witness == site.witness else witness  # beside the holder: it may have been moved otherwise
    edit, module = replace(site.edit, module=holder), _join(holder, site.child)
    return replace(site, edit=edit, module=module, path=moved(site.path), reader=reader, witness=witness)


def _join(prefix: str, path: str) -> str:
    return f"{prefix}{path}" if path[:1] in (":", "[") else f"{prefix}.{path}".strip(".")


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
    hooks = [(path, _hook(modules[path], here)) for (path, *_), here in by_hook.items()]
    for path, hook in hooks:
        parts[path].hooks.append(hook)
    if hooks:
        peers = [site.path for site, made in zip(sites, attentions, strict=True) if not isinstance(made, SimAM)]
        presence = _presence(model, hooks, sites, recipes, example, peers)
        parts.setdefault("", _Part(model, [], {})).hooks.append(presence)
    try:
        _exchange(model, list(parts.values()))
    finally:
        guard_hooks()
        torch.compiler.reset()


def check_edits(model: nn.Module) -> None:
    """Raise for an edit that was lost, and restore a hook that was dropped, as the next forward would.

    SimAMs that came with modules which were added later, as copies of a block, are watched from now on.
    """
    presences = presences_in(model)
    for path, presence in presences.items():
        presence(model.get_submodule(path), ())
    sites = [entry.insertion for entry in attended_in(model)]
    if [*presences] == [""] and len(sites) > watched_in(model):
        own = presences[""]
        attach(model, sites, recipes=own.recipes, example=own.example, reuse=True)


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
    if not isinstance(attention, nn.Module) or isinstance(attention, torch.jit.ScriptModule):  # which takes no hooks
        raise ModelError(
            "attention must return an nn.Module in plain Python for a number of channels; "
            f"it returned {a_type(attention)}"
        )
    if any(is_lazy(tensor) or tensor.is_meta for tensor in (*attention.parameters(), *attention.buffers())):
        raise ModelError(
            f"attention at {site.name} is {a_type(attention)} whose tensors have no data: they are lazy, or on meta"
        )
    tensor = next((p for p in [*holder.parameters(), *model.parameters()] if p.is_floating_point()), None)
    if tensor is not None:
        attention.to(tensor.device, tensor.dtype)
    return attention.train(holder.training)


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


def _presence(
    model: nn.Module,
    hooks: list[tuple[str, SiteHook]],
    sites: Sequence[Insertion],
    recipes: list[dict[str, Any]],
    example: dict[str, Any] | None,
    peers: list[str],
) -> Presence:
    holders = []
    for path, hook in hooks:
        names = tuple(path.split(".")) if path else ()
        holders.append((names, hook, distance_to_end(model, names, hook.sites)))
    witnesses = [(tuple(site.witness.split(".")), site.path) for site in sites if site.witness]
    written = _written(example)
    return Presence.made(holders=holders, witnesses=witnesses, recipes=recipes, example=written, peers=peers)


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
            for holder, name in hook.children(module) if isinstance(hook, Presence) else ():
                expected[id(holder)].add(name)
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
