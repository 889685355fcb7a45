"""The expected result of SimAM at the recorded sites, computed independently: hooks, formula and axes of its own."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import Attended
from simam_inject.nested import entry_at, replace_entry
from simam_inject.verification.naming import NamedValues

Shapes = dict[str, list[tuple[int, ...]]]
"""Shapes that a site had in one forward, by path."""


def formula(x: Tensor, e_lambda: float, spatial: tuple[int, ...], strength: float = 1.0, gain: float = 1.0) -> Tensor:
    """SimAM in float64, written from the paper, over the given spatial dimensions."""
    wide = x.double()
    positions = 1
    for dim in spatial:
        positions *= x.shape[dim]
    difference = (wide - wide.mean(spatial, keepdim=True)).square()
    variance = difference.sum(spatial, keepdim=True) / max(positions - 1, 1)
    gate = torch.sigmoid(difference / (4 * (variance + e_lambda)) + 0.5)
    return (wide * ((1 - strength) + strength * gain * gate)).to(x.dtype)


class Oracle:
    """Hooks on a stock network that do what a model's SimAMs should do."""

    def __init__(self, sites: list[Attended]) -> None:
        self.sites = sites
        self.spatial: dict[str, tuple[int, ...]] = {}
        self.unnamed: set[str] = set()
        """Sites inside a forward that computes other values in this mode, so that names do not tell which is meant."""
        self.names: dict[str, Counter[str]] = {}
        """How many values of each name the modules with sites inside computed in the last forward, by path."""

    def find_axes(self, one: Shapes, other: Shapes) -> None:
        """Spatial dimensions of each site, from its shapes in forwards of two image sizes and batches.

        The first dimension is the batch. Of the others, the one that stays while another changes holds the channels.
        """
        for path, shapes in one.items():
            first, second = shapes[:1], other.get(path, [])[:1]
            if not first or not second or len(first[0]) != len(second[0]):
                continue
            inner = range(1, len(first[0]))
            fixed = [dim for dim in inner if first[0][dim] == second[0][dim]]
            if len(fixed) == 1 and len(first[0]) > 2:
                self.spatial[path] = tuple(dim for dim in inner if dim != fixed[0])

    @contextmanager
    def noting_shapes(self, stock: nn.Module, shapes: Shapes) -> Iterator[None]:
        """Inside, forwards of the stock network write down the shape of each site."""

        def note(entry: Attended, x: Tensor) -> Tensor:
            shapes.setdefault(entry.site["path"], []).append(tuple(x.shape))
            return x

        with self._hooked(stock, note):
            yield

    @contextmanager
    def attending(self, stock: nn.Module) -> Iterator[None]:
        """Inside, forwards of the stock network compute the formula at each site."""

        def attend(entry: Attended, x: Tensor) -> Tensor:
            site, attention = entry.site, entry.attention
            if not isinstance(attention, SimAM):  # another attention module, put in by a factory
                assert attention is not None
                twin = copy.deepcopy(attention).to(x.dtype).train(stock.training)
                return twin(x.movedim(-1, 1)).movedim(1, -1) if site["channel_dim"] == -1 else twin(x)  # type: ignore[no-any-return]
            spatial = self.spatial.get(site["path"])
            if spatial is None:
                spatial = tuple(range(2, x.dim())) if site["channel_dim"] == 1 else tuple(range(1, x.dim() - 1))
            return formula(x, site["e_lambda"], spatial, 1.0, attention.gain)

        with self._hooked(stock, attend):
            yield

    def _scopes(self) -> set[str]:
        return {_scope(entry) for entry in self.sites if _is_named(entry)}

    def leave_out_unnamed(self, names: dict[str, Counter[str]]) -> None:
        """Leave out the sites of modules that computed other values in the last forward than in the one of `names`."""
        changed = {scope for scope in self._scopes() if self.names.get(scope) != names.get(scope)}
        self.unnamed = {entry.site["path"] for entry in self.sites if _is_named(entry) and _scope(entry) in changed}

    @contextmanager
    def _hooked(self, stock: nn.Module, attend: Callable[[Attended, Tensor], Tensor]) -> Iterator[None]:
        modules = dict(stock.named_modules())

        def function(entry: Attended, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():  # the formula's own operations have no names
                return attend(entry, x)

        handles = []
        inside = {}
        for entry in self.sites:
            if _is_named(entry) and entry.site["path"] not in self.unnamed:
                inside[entry.site["path"]] = partial(function, entry)
        recorder = NamedValues(stock, inside)
        try:
            for entry in self.sites:
                edit = entry.site["edit"]
                named = entry.site["path"].partition(":")[0]
                if edit["kind"] == "output":
                    # The path names the module, unless the value is one that the holder computes inside.
                    is_named = named in modules and (edit["key"] is not None) == (":" in entry.site["path"])
                    module = modules[named] if is_named and entry.site["runs"] == 1 else modules[entry.path]
                    handles.append(module.register_forward_hook(_after(entry, function), prepend=True))
                elif edit["kind"] == "input" and entry.site["path"] not in inside:
                    handle = modules[entry.path].register_forward_pre_hook(_before(entry, function), with_kwargs=True)
                    handles.append(handle)
            with recorder.attending() if inside else nullcontext():
                yield
        finally:
            self.names = {scope: recorder.names_in(scope) for scope in self._scopes()}
            for handle in handles:
                handle.remove()


def _is_named(entry: Attended) -> bool:
    """The value is found by its name; other sites by the module that returns or reads it."""
    kind, position = entry.site["edit"]["kind"], entry.site["position"]
    return kind == "rewritten" or (kind == "input" and position == "after")


def _scope(entry: Attended) -> str:
    """Path of the module whose forward computes a value that is found by its name."""
    return entry.path if entry.site["edit"]["kind"] == "rewritten" else entry.site["path"].rpartition(".")[0]


def _after(entry: Attended, function: Any) -> Any:
    key = entry.site["edit"]["key"]

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        given = output if key is None else entry_at(output, key)
        attended = function(entry, given)
        if attended is given:  # only looked at: the container stays the very one
            return None
        return attended if key is None else replace_entry(output, key, attended)

    return hook


def _before(entry: Attended, function: Any) -> Any:
    edit = entry.site["edit"]
    argument, key = edit["argument"], edit["key"]

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_positional = isinstance(argument, int) and argument < len(args)
        given = args[argument] if is_positional else kwargs[argument]
        map_ = given if key is None else entry_at(given, key)
        attended = function(entry, map_)
        if attended is map_:
            return None
        attended = attended if key is None else replace_entry(given, key, attended)
        if is_positional:
            return (*args[:argument], attended, *args[argument + 1 :]), kwargs
        return args, {**kwargs, argument: attended}

    return hook
