"""The sites of a model on the original network, found by hooks, names and axes of its own.

Of an edit it reads the kind, key, argument and holder; it uses neither the hooks nor the rewritten source of `editing`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.dataflow.naming import Namer, parameters_of
from simam_inject.dataflow.values import Frame
from simam_inject.editing.attach import Attended
from simam_inject.nested import Key, entries_of, replace_entry, write_entry
from simam_inject.planning.insertions import Input, Output, Rewritten

_Function = Callable[[Tensor], Tensor]


class Oracle:
    """Where the original network computes what the SimAMs of a model attend; sites are named by `Insertion.module`."""

    def __init__(self, sites: list[Attended], model: nn.Module) -> None:
        self.sites = sites
        self.shapes: dict[str, torch.Size] = {}
        """Of the value at each site, in the first forward that reached it."""
        self.ran: set[str] = set()
        """Paths of the modules that the first forward ran."""
        modules = dict(model.named_modules(remove_duplicate=False))
        scopes = {entry.site.module: _scope(entry, modules) for entry in sites}
        self.scopes = {site: scope for site, scope in scopes.items() if scope is not None}
        """Path of the module whose forward computes the value, for sites that are found by a name inside it."""
        self.names: list[dict[str, dict[str, int]]] = []
        """Of each forward, how many values of each name these modules computed."""

    def run(
        self,
        stock: nn.Module,
        forward: Callable[[nn.Module], Any],
        exchange: Callable[[Attended, Tensor], Tensor],
        unnumbered: Collection[str] = (),
    ) -> Any:
        """What a forward of the original returns that goes on with what `exchange` returns for the value of each site.

        For `unnumbered` sites, `exchange` is called with each value of the same operation: `add[2]` as well as `add`.
        """

        def function(entry: Attended, x: Tensor) -> Tensor:
            self.shapes.setdefault(entry.site.module, x.shape)
            with torch._C.DisableTorchFunction():  # operations of the oracle are not those of the forward
                return exchange(entry, x)

        modules, namer = dict(stock.named_modules(remove_duplicate=False)), _SiteNamer(stock)
        names = Counter(map(id, modules.values()))
        alone = {path for path, module in modules.items() if names[id(module)] == 1}
        for entry in self.sites:
            if entry.site.module in self.scopes:
                namer.add(entry.site.path, partial(function, entry), entry.site.module not in unnumbered)
            else:
                _add_hook(entry, modules, alone, partial(function, entry))
        try:
            with namer.watching() if self.scopes or not self.ran else nullcontext():
                return forward(stock)
        finally:
            self.ran = self.ran or {path for path, count in namer.calls.items() if count}
            self.names.append({scope: namer.names_in(scope) for scope in self.scopes.values()})

    def changed(self) -> set[str]:
        """Sites in modules whose last forward computed other values than the first, so that names mean other values."""
        first, last = self.names[0], self.names[-1]
        return {site for site, scope in self.scopes.items() if first[scope] != last[scope]}

    def spatial(self, entry: Attended, shape: torch.Size) -> tuple[int, ...]:
        """Spatial dimensions of a site, from its shape at another image size; as planned where that does not tell.

        The first dimension is the batch. Of the others, the one that stays while another changes holds the channels.
        """
        first, dims = self.shapes.get(entry.site.module, torch.Size()), range(1, len(shape))
        fixed = [dim for dim in dims if len(first) == len(shape) and first[dim] == shape[dim]]
        channel = fixed[0] if len(fixed) == 1 else entry.site.channel_dim % len(shape)
        return tuple(dim for dim in dims if dim != channel)


def _scope(entry: Attended, modules: dict[str, nn.Module]) -> str | None:
    """Path of the module that computes a value inside; None if it is found by the module that returns or reads it."""
    edit, (scope, _, name) = entry.site.edit, entry.site.path.rpartition(".")
    if isinstance(edit, Rewritten):
        return edit.module
    if not isinstance(edit, Input) or entry.site.position == "before" or edit.module == scope:
        return None
    owner = type(modules.get(scope))
    is_given = issubclass(owner, nn.Module) and name.partition(":")[0] in parameters_of(owner.forward)  # `scope.x`
    return None if is_given else scope


def _add_hook(entry: Attended, modules: dict[str, nn.Module], alone: set[str], function: _Function) -> None:
    """Register a hook on the module that the path names.

    For what the holder computes inside, or repeatedly, on the holder; so too if the named module has other names, as
    one activation for the whole network, which runs under each.
    """
    site, edit = entry.site, entry.site.edit
    assert not isinstance(edit, Rewritten)
    if isinstance(edit, Output):
        path, colon, _ = site.path.partition(":")
        is_module = path in alone and site.runs == 1 and (edit.key is not None) == bool(colon)
        module = modules[path if is_module else edit.module]
        module.register_forward_hook(lambda _m, _a, output: _replaced(output, edit.key, function), prepend=True)
        return

    calls: list[tuple[Any, Any, Any]] = []
    """Of each call that runs: the argument that its caller gave, what the module was given, and the entries of that."""

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        value = given.get(edit.argument)
        copied = given[edit.argument] = _replaced(value, edit.key, function, replace_entry)
        calls.append((value, copied, entries_of(copied) or []))
        return tuple(given[place] for place in range(len(args))), {name: given[name] for name in kwargs}

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        value, copied, given = calls.pop()
        before, now = ([(key, id(one)) for key, one in entries] for entries in (given, entries_of(copied) or []))
        if edit.key is not None and copied is not value and before != now:
            _write_back(value, copied, _entry(value, edit.key), dict(given)[edit.key])

    modules[edit.module].register_forward_pre_hook(before, with_kwargs=True)
    modules[edit.module].register_forward_hook(after, prepend=True)


def _entry(value: Any, key: Key | None) -> Any:
    """The value, or an entry of it; None if it has no such entry."""
    return value if key is None else dict(entries_of(value) or ()).get(key)


def _replaced(value: Any, key: Key | None, function: _Function, replace: Callable[..., Any] = write_entry) -> Any:
    """The value, or a container with another entry at `key`; the very value where nothing changes.

    A list or dict that a module returns is changed itself, not copied as by the hooks: if a forward also keeps it, the
    outputs differ.
    """
    given = _entry(value, key)
    attended = function(given) if isinstance(given, Tensor) else given
    if attended is given:
        return value
    return attended if key is None else replace(value, key, attended)


def _write_back(value: Any, copied: Any, entry: Any, attended: Any) -> None:
    """Write what a module has written into the copy of a list or dict into the one that its caller has.

    The caller's keeps its own entry where the copy has the attended one.
    """
    if isinstance(value, list):
        value[:] = [entry if one is attended else one for one in copied]
    elif isinstance(value, dict):
        for name in value.keys() - copied.keys():
            del value[name]
        for name, one in copied.items():
            value[name] = entry if one is attended else one


class _SiteNamer(Namer):
    """Finds values in the middle of a forward by their names (`add[2]` of a module), as `dataflow` counts them."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__(stock)
        self.functions = defaultdict[str, list[tuple[str, str, bool, _Function]]](list)
        """By path without the number of the call."""

    def add(self, path: str, function: _Function, is_numbered: bool) -> None:
        """Replace the value at a path, which is an entry of a list, tuple or dict if the path has a key."""
        name, _, key = path.partition(":")
        self.functions[name.partition("[")[0]].append((name, key, is_numbered, function))

    def left(self, frame: Frame, path: str | None, output: Any) -> Any:
        """What the caller of a module gets. The first call of a module has the path of the module as well."""
        output = super().left(frame, path, output)
        is_other = path is not None and path != frame.path and self.calls[frame.path] == 1
        return self.named(frame.path, output) if is_other else output

    def named(self, path: str, result: Any) -> Any:
        """What the forward gets in the place of a named value."""
        for name, text, is_numbered, function in self.functions.get(path.partition("[")[0], ()):
            if name == path or not is_numbered:
                keys = [key for key, _ in entries_of(result) or () if str(key) == text] if text else [None]
                for key in keys:
                    result = _replaced(result, key, function)
        return result
