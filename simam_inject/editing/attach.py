"""Add SimAM to a model and remove it again: the only package that changes a model."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.checking import SiteRecord
from simam_inject.editing.hooks import (
    InputHook,
    OutputHook,
    add_input_hook,
    add_output_hook,
    input_hook,
    output_hook,
    remove_hooks,
)
from simam_inject.editing.presence import Presence, presence_of, set_presence
from simam_inject.editing.records import insertion_of, seen_from
from simam_inject.editing.rewrite import RewrittenMethod, rewritten_methods
from simam_inject.errors import ModelError
from simam_inject.modules import is_taken
from simam_inject.planning.records import Insertion

Factory = Callable[[int], nn.Module]
"""Makes an attention module for a number of channels."""


@dataclass(frozen=True, slots=True)
class Attended:
    """One site that is in a model now."""

    holder: nn.Module
    path: str
    """Path of the holder now."""
    site: SiteRecord
    """With paths as this model sees them."""

    @property
    def attention(self) -> nn.Module | None:
        """The module that attends; None if it was removed."""
        return self.holder._modules.get(self.site["child"])

    @property
    def insertion(self) -> Insertion:
        """The record of `injected`."""
        return insertion_of(self.site, self.attention)


def attended_in(model: nn.Module) -> Iterator[Attended]:
    """Every site of a model in module order."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        hooks: list[Any] = [output_hook(module), input_hook(module), *rewritten_methods(module)]
        for hook in hooks:
            for site in hook.sites if hook is not None else ():
                yield Attended(module, path, site if site["edit"]["module"] == path else seen_from(site, path))


def attach(
    model: nn.Module,
    sites: Sequence[SiteRecord],
    *,
    recipes: list[dict[str, Any]],
    example: dict[str, Any] | None = None,
    settings: Sequence[tuple[float, float]] | None = None,
    factory: Factory | None = None,
    keep: bool = False,
) -> None:
    """Replace the sites of a model by these. If an error is raised, the model is unchanged.

    Args:
        model: the root; changed in place.
        sites: as planned or read from a file; nothing is run or traced.
        recipes: what they were planned from, kept for the record.
        example: shapes of the example's arguments, kept for `verify`.
        settings: strength and gain of each site; 1 and 1 without.
        factory: makes another attention module than SimAM.
        keep: where a SimAM stands already it stays, with its attributes and hooks.

    Raises:
        ModelError: a holder is missing, or cannot hold a SimAM.
    """
    there = {(entry.path, entry.site["child"]): entry.attention for entry in attended_in(model)} if keep else {}
    before = _take_out(model)
    added: list[tuple[nn.Module, str]] = []
    try:
        _put_in(model, sites, recipes, example, settings, factory, there, added)
    except BaseException:
        _take_out(model)
        for module, child in added:
            module._modules.pop(child, None)
        before()
        raise
    finally:
        _forget_compiled_code()


def detach(model: nn.Module) -> None:
    """Remove every SimAM, every hook and the presence check from a model."""
    _take_out(model)
    _forget_compiled_code()


def _put_in(
    model: nn.Module,
    sites: Sequence[SiteRecord],
    recipes: list[dict[str, Any]],
    example: dict[str, Any] | None,
    settings: Sequence[tuple[float, float]] | None,
    factory: Factory | None,
    there: dict[tuple[str, str], nn.Module | None],
    added: list[tuple[nn.Module, str]],
) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))  # a path of a file is looked up, and runs no property
    holders: dict[tuple[str, str], list[SiteRecord]] = {}
    for place, site in enumerate(sites):
        path = site["edit"]["module"]
        if path not in modules:
            raise ModelError(
                f"{type(model).__name__} has no module {path!r}, which should have the SimAM at {site['path']}"
            )
        module = modules[path]
        if is_taken(module, site["child"]):
            raise ModelError(f"{path or 'the model'} has an attribute {site['child']!r} already")
        _check_class(module, site)
        added.append((module, site["child"]))
        setting = settings[place] if settings else (1.0, 1.0)
        found = there.get((path, site["child"]))
        module._modules[site["child"]] = _attention(module, model, site, setting, factory) if found is None else found
        kind = site["edit"]["kind"]
        if kind == "rewritten":
            kind += f" {(site['expression'] or {}).get('method')}"
        holders.setdefault((path, kind), []).append(site)
    placed: list[tuple[str, Any]] = []
    for (path, kind), here in holders.items():
        placed.append((path, _add_hook(modules[path], kind, here)))
    if placed:
        witnesses = [(site["witness"], site["path"]) for site in sites if site["witness"]]
        presence = Presence(placed, witnesses, recipes, example)
        presence.note_containers(model)
        set_presence(model, presence)


def _check_class(module: nn.Module, site: SiteRecord) -> None:
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule)):
        raise ModelError(f"{site['edit']['module']} is a {type(module).__name__}, which cannot have a SimAM as a child")


def _attention(
    holder: nn.Module, model: nn.Module, site: SiteRecord, setting: tuple[float, float], factory: Factory | None
) -> nn.Module:
    if factory is None:
        attention: nn.Module = SimAM(site["e_lambda"], channel_dim=site["channel_dim"])
        attention.strength, attention.gain = setting  # type: ignore[assignment]
    else:
        attention = factory(site["shape"][site["channel_dim"]])
        tensor = next((p for p in [*holder.parameters(), *model.parameters()] if p.is_floating_point()), None)
        if not isinstance(attention, nn.Module):
            raise ModelError(
                f"attention must return an nn.Module for a number of channels; it returned a {type(attention).__name__}"
            )
        if tensor is not None:
            attention.to(tensor.device, tensor.dtype)
    attention.train(holder.training)
    return attention


def _add_hook(module: nn.Module, kind: str, sites: list[SiteRecord]) -> Any:
    if kind == "output":
        has_bias = getattr(module, "bias", None) is not None if isinstance(module, nn.modules.conv._ConvNd) else None
        output = OutputHook(sites, has_bias)
        add_output_hook(module, output)
        return output
    if kind == "input":
        entry = InputHook(sites, _parameter_names(module))
        add_input_hook(module, entry)
        return entry
    method = str((sites[0]["expression"] or {})["method"])
    if method in module.__dict__:
        raise ModelError(
            f"{method} of {sites[0]['edit']['module'] or 'the model'} was replaced on the instance, "
            "and cannot be rewritten"
        )
    module.__dict__[method] = RewrittenMethod(module, method, sites)
    return module.__dict__[method]


def _parameter_names(module: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return []


def _take_out(model: nn.Module) -> Callable[[], None]:
    """Take all out; returns a function that puts it back, the very same modules and hooks."""
    undo: list[Callable[[], None]] = []
    lost: dict[int, set[str]] = {}
    """Names of SimAMs whose hooks another tool has dropped, by `id` of their module."""
    for module in list(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        presence = presence_of(module)  # the model's, and that of a part that was injected by itself
        if presence is not None:
            set_presence(module, None)
            undo.append(partial(set_presence, module, presence))
            for holder, name in presence.children(module):
                lost.setdefault(id(holder), set()).add(name)
        output, given, methods = output_hook(module), input_hook(module), rewritten_methods(module)
        names = {site["child"] for hook in (output, given, *methods) if hook is not None for site in hook.sites}
        names |= lost.get(id(module), set())
        children = {name: module._modules[name] for name in names if name in module._modules}
        if output is None and given is None and not methods and not children:
            continue
        remove_hooks(module)
        for method in methods:
            del module.__dict__[method.method]
        for name in children:
            del module._modules[name]
        undo.append(_restorer(module, children, output, given, methods))

    def put_back() -> None:
        for step in undo:
            step()

    return put_back


def _restorer(
    module: nn.Module,
    children: dict[str, nn.Module | None],
    output: OutputHook | None,
    given: InputHook | None,
    methods: list[RewrittenMethod],
) -> Callable[[], None]:
    def restore() -> None:
        module._modules.update(children)
        if output is not None:
            add_output_hook(module, output)
        if given is not None:
            add_input_hook(module, given)
        for method in methods:
            module.__dict__[method.method] = method

    return restore


@contextmanager
def without_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager in which the model has no SimAM; restores the same ones afterwards."""
    put_back = _take_out(model)
    try:
        yield model
    finally:
        put_back()


def _forget_compiled_code() -> None:
    """`torch.compile` does not look at hooks: a model that was compiled before would go on without them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
