"""Add SimAM to a model and remove it again: all sites, or none if an error is raised."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from simam_inject.attention import SimAM
from simam_inject.editing.hooks import InputHook, OutputHook, SiteHook, guard_hooks, hooks_on
from simam_inject.editing.presence import Presence, distance_to_end, presence_of, set_presence
from simam_inject.editing.rewrite import RewrittenMethod
from simam_inject.editing.serialization import ExampleRecord, checked
from simam_inject.errors import FileError, ModelError, a_type
from simam_inject.modules import CONTAINERS, is_taken
from simam_inject.planning.insertions import Insertion, Output, Rewritten

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

    edit: Any = replace(site.edit, **{"owner" if isinstance(site.edit, Rewritten) else "module": holder})  # type: ignore[arg-type]
    reader = site.reader and moved(site.reader)
    witness = site.witness and moved(site.witness)
    witness = None if witness == site.witness else witness  # beside the holder: it may have been moved otherwise
    return replace(
        site, edit=edit, module=_join(holder, site.child), path=moved(site.path), reader=reader, witness=witness
    )


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
    before = {(id(part.module), name): child for part in _parts(model) for name, child in part.children.items()}
    children: list[tuple[nn.Module, str, nn.Module]] = []
    by_hook: dict[tuple[str, str, str | None], list[Insertion]] = defaultdict(list)
    for site in sites:
        holder = _holder(model, modules, site)
        there = before.get((id(holder), site.child))
        if there is None and is_taken(holder, site.child):
            raise ModelError(f"{site.edit.module or 'the model'} has an attribute {site.child!r} already")
        made = there if reuse and there is not None else _attention(holder, model, site, factory)
        if any(made is other for _, _, other in children):
            raise ModelError("attention must return a new module for each site; it returned the same one twice")
        children.append((holder, site.child, made))
        method = None if site.expression is None else site.expression.method
        by_hook[site.edit.module, site.edit.kind, method].append(site)
    hooks = [(path, _hook(modules[path], here)) for (path, *_), here in by_hook.items()]
    peers = [site.path for site, (_, _, made) in zip(sites, children, strict=True) if not isinstance(made, SimAM)]
    presence = _presence(model, hooks, sites, recipes, example, peers) if hooks else None
    _exchange(model, children, [(modules[path], hook) for path, hook in hooks], presence)


def _exchange(
    model: nn.Module,
    children: list[tuple[nn.Module, str, nn.Module]],
    hooks: list[tuple[nn.Module, SiteHook]],
    presence: Presence | None,
) -> None:
    """Replace what the model has by these: all, or nothing if an error is raised."""
    restore = restorer(model)
    try:
        strip(model)
        for holder, name, attention in children:
            holder._modules[name] = attention
        for holder, hook in hooks:
            hook.put_on(holder)
        set_presence(model, presence)
    except BaseException:
        for holder, name, _ in children:
            holder._modules.pop(name, None)
        restore()
        raise
    finally:
        guard_hooks()
        torch.compiler.reset()


def detach(model: nn.Module) -> None:
    """Remove every SimAM, every hook and the presence check from a model."""
    strip(model)
    torch.compiler.reset()


def _holder(model: nn.Module, modules: dict[str, nn.Module], site: Insertion) -> nn.Module:
    path = site.edit.module
    if path not in modules:
        raise ModelError(f"{type(model).__name__} has no module {path!r}, which should have the SimAM at {site.name}")
    if isinstance(modules[path], (*CONTAINERS, torch.jit.ScriptModule)):
        raise ModelError(f"{path} is a {type(modules[path]).__name__}, which cannot have a SimAM as a child")
    return modules[path]


def _attention(holder: nn.Module, model: nn.Module, site: Insertion, factory: Factory | None) -> nn.Module:
    if factory is None:
        attention: nn.Module = SimAM(site.e_lambda, channel_dim=site.channel_dim)
        attention.strength, attention.gain = site.strength, site.gain  # type: ignore[assignment]
    else:
        attention = factory(site.shape[site.channel_dim])
        tensor = next((p for p in [*holder.parameters(), *model.parameters()] if p.is_floating_point()), None)
        if not isinstance(attention, nn.Module):
            raise ModelError(
                f"attention must return an nn.Module for a number of channels; it returned {a_type(attention)}"
            )
        if any(map(is_lazy, attention.parameters())):
            raise ModelError(f"attention returned {a_type(attention)} whose parameters have no shape yet")
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
        raise ModelError(f"{expression.method} of {name} was replaced on the instance, and cannot be rewritten")
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
    """What this package has put on one module."""

    module: nn.Module
    presence: Presence | None
    hooks: list[SiteHook]
    children: dict[str, nn.Module | None]

    def take_out(self) -> None:
        set_presence(self.module, None)
        for hook in self.hooks:
            hook.take_off(self.module)
        for name in self.children:
            del self.module._modules[name]

    def put_back(self) -> None:
        self.module._modules.update(self.children)
        for hook in self.hooks:
            hook.put_on(self.module)
        if self.presence is not None:
            set_presence(self.module, self.presence)


def _parts(model: nn.Module) -> list[_Part]:
    """What is in a model, including SimAMs whose hook was dropped."""
    found, expected = [], defaultdict[int, set[str]](set)
    for module in list(model.modules()):
        presence, hooks = presence_of(module), hooks_on(module)  # a part may have been injected by itself
        for holder, name in presence.children(module) if presence is not None else ():
            expected[id(holder)].add(name)
        names = {site.child for hook in hooks for site in hook.sites} | expected[id(module)]
        children = {name: module._modules[name] for name in names if name in module._modules}
        if presence is not None or hooks or children:
            found.append(_Part(module, presence, hooks, children))
    return found


def strip(model: nn.Module) -> None:
    """Remove every SimAM, hook and presence check, and leave compiled code as it is."""
    for part in _parts(model):
        part.take_out()


def restorer(model: nn.Module) -> Callable[[], None]:
    """A function that puts the attention of a model back as it is now: the very same modules and hooks."""
    parts = _parts(model)

    def restore() -> None:
        strip(model)
        for part in parts:
            part.put_back()

    return restore


@contextmanager
def without_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager in which the model has no SimAM; restores the same ones afterwards."""
    restore = restorer(model)
    strip(model)
    try:
        yield model
    finally:
        restore()
