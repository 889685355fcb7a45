"""The sites of a model on the original network, with hooks, names and axes of its own.

Of an edit it reads the kind, key, argument and holder; it uses neither the hooks nor the rewritten source of `editing`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.dataflow.naming import Namer
from simam_inject.editing.attach import Attended
from simam_inject.errors import describe_exception
from simam_inject.nested import entry_at, replace_entry
from simam_inject.planning.records import Input, Output, Rewritten
from simam_inject.verification.formula import Call, formula, mean_over_deviation, why_far

_Function = Callable[[Tensor], Tensor]


class Oracle:
    """Where the original network computes what the SimAMs of a model attend.

    Args:
        sites: of the model.
    """

    def __init__(self, sites: list[Attended]) -> None:
        self.sites = sites
        self.shapes: dict[str, list[torch.Size]] = {}
        """Shapes of each site in the first forward; sites are identified by `Insertion.module`."""
        self.unnamed: set[str] = set()
        """Sites inside a forward that computes other values than in the first, so that names do not say which."""
        self._names: list[dict[str, Counter[str]]] = []
        """Of each forward, how many values of each name the modules with sites inside computed, by path."""
        self._spatial: dict[str, tuple[int, ...]] = {}

    def has_left_out(self) -> bool:
        """Leave out the sites of modules that computed other values in the last forward than in the first.

        Returns:
            Others are left out than before.
        """
        before = self.unnamed
        changed = {scope for scope, names in self._names[-1].items() if names != self._names[0][scope]}
        self.unnamed = {entry.site.module for entry in self.sites if _is_named(entry) and _scope(entry) in changed}
        return self.unnamed != before

    def spatial(self, entry: Attended, shape: torch.Size) -> tuple[int, ...]:
        """Spatial dimensions of a site, from its shapes in forwards of two image sizes; else as planned.

        The first dimension is the batch. Of the others, the one that stays while another changes holds the channels.
        """
        key, inner = entry.site.module, range(1, len(shape))
        first = self.shapes.get(key, [torch.Size()])[0]
        if key not in self._spatial and len(first) == len(shape) > 2:
            fixed = [dim for dim in inner if first[dim] == shape[dim]]
            if len(fixed) == 1:
                self._spatial[key] = tuple(dim for dim in inner if dim != fixed[0])
        planned = range(2, len(shape)) if entry.site.channel_dim == 1 else range(1, len(shape) - 1)
        return self._spatial.get(key, tuple(planned))

    def note_shape(self, entry: Attended, x: Tensor) -> Tensor:
        """For `attending`, in the first forward."""
        self.shapes.setdefault(entry.site.module, []).append(x.shape)
        return x

    def why_not_formula(self, entry: Attended, call: Call) -> str | None:
        """How the result of a call differs from the formula; also of the same in float64, where more shows."""
        attention, wide = call.attention, call.given.double()
        if not isinstance(attention, SimAM):  # another attention module, made by a factory
            return None
        with torch.no_grad():
            found, wanted = attention.forward(wide), self._formula(entry, call, wide)
        magnified = self._magnified(entry, call)
        problem = why_far(call.result, wanted.to(call.given.dtype), "the formula", magnified=magnified)
        problem = problem or why_far(found, wanted, "the formula", magnified=magnified)
        return problem and f"{entry.site.path} {problem}"

    def why_no_gradient(self, entry: Attended, call: Call) -> str | None:
        """How the gradient of a call differs from the formula's; after the forward, which may have overwritten maps."""
        assert call.edges is not None
        given, result = call.edges
        weights = torch.linspace(0.5, 1.5, call.result.numel(), device=call.result.device).reshape(call.result.shape)
        try:
            (found,) = torch.autograd.grad((result,), (given,), (weights.to(call.result),), retain_graph=True)
        except RuntimeError as error:
            return f"{entry.site.path} has no gradient: {describe_exception(error):.150}"
        if not isinstance(call.attention, SimAM):
            return None
        with torch.enable_grad():
            x = call.given.double().requires_grad_()
            (wanted,) = torch.autograd.grad(self._formula(entry, call, x), x, weights.double())
        name, magnified = "the gradient of the formula", self._magnified(entry, call)
        problem = why_far(found, wanted.to(found.dtype), name, factor=10, magnified=magnified)
        return problem and f"{entry.site.path} {problem}"

    def _magnified(self, entry: Attended, call: Call) -> float:
        return mean_over_deviation(call.given, entry.site.e_lambda, self.spatial(entry, call.shape))

    def _formula(self, entry: Attended, call: Call, x: Tensor) -> Tensor:
        assert isinstance(call.attention, SimAM)
        return formula(x, entry.site.e_lambda, self.spatial(entry, call.shape), gain=call.attention.gain)

    @contextmanager
    def attending(self, stock: nn.Module, attend: Callable[[Attended, Tensor], Tensor]) -> Iterator[None]:
        """Inside, a forward of the original goes on with what `attend` returns for the value of each site."""

        def function(entry: Attended, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():  # its own operations have no names
                return attend(entry, x)

        modules = dict(stock.named_modules())
        inside = [entry for entry in self.sites if _is_named(entry)]
        named = [entry for entry in inside if entry.site.module not in self.unnamed]
        functions: dict[str, _Function] = {entry.site.path: partial(function, entry) for entry in named}
        recorder = _NamedValues(stock, functions)
        handles = []
        try:
            for entry in self.sites:
                edit = entry.site.edit
                if isinstance(edit, Output):
                    hook = _after(edit.key, partial(function, entry))
                    handles.append(_returning(entry, modules).register_forward_hook(hook, prepend=True))
                elif isinstance(edit, Input) and entry not in named:
                    before = _before(edit.argument, edit.key, partial(function, entry))
                    handles.append(modules[edit.module].register_forward_pre_hook(before, with_kwargs=True))
            with recorder.watching() if inside else nullcontext():
                yield
        finally:
            scopes = [_scope(entry) for entry in inside]
            self._names.append({scope: recorder.names_in(scope) for scope in scopes})
            for handle in handles:
                handle.remove()


def _is_named(entry: Attended) -> bool:
    """The value is found by its name; other sites by the module that returns or reads it."""
    edit, position = entry.site.edit, entry.site.position
    is_argument = edit.module == entry.site.path.rpartition(".")[0]  # `block.x`: what the holder itself is given
    return isinstance(edit, Rewritten) or (isinstance(edit, Input) and position == "after" and not is_argument)


def _scope(entry: Attended) -> str:
    """Path of the module whose forward computes a value that is found by its name."""
    edit, path = entry.site.edit, entry.site.path
    return edit.owner if isinstance(edit, Rewritten) else path.rpartition(".")[0]


def _returning(entry: Attended, modules: dict[str, nn.Module]) -> nn.Module:
    """The module that the path names; the holder for a value that it computes inside, or in several calls."""
    path, colon, _ = entry.site.path.partition(":")
    edit = entry.site.edit
    is_module = path in modules and isinstance(edit, Output) and (edit.key is not None) == bool(colon)
    return modules[path if is_module and entry.site.runs == 1 else edit.module]


def _after(key: int | str | None, function: _Function) -> Callable[..., Any]:
    return lambda _module, _args, output: _replaced(output, key, function)


def _before(argument: int | str, key: int | str | None, function: _Function) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(argument, int) and argument < len(args):
            attended = _replaced(args[argument], key, function)
            return (*args[:argument], attended, *args[argument + 1 :]), kwargs
        return args, kwargs | {str(argument): _replaced(kwargs[str(argument)], key, function)}

    return hook


def _replaced(value: Any, key: int | str | None, function: _Function) -> Any:
    """The value, or a copy with another entry at `key`; the very container where the entry stays."""
    if key is None:
        return function(value)
    given = entry_at(value, key)
    attended = function(given)
    return value if attended is given else replace_entry(value, key, attended)


class _NamedValues(Namer):
    """Finds values in the middle of a forward by their names (`add[2]` of a module), as `dataflow` counts them.

    Nothing of `editing` is used: no source, no wrapped expression.

    Args:
        model: a twin without SimAM.
        functions: what becomes of a value, by its path; entries of lists, tuples and dicts have a path with a key.
    """

    def __init__(self, model: nn.Module, functions: dict[str, _Function]) -> None:
        super().__init__(model)
        self.functions: dict[str, list[tuple[int | str | None, _Function]]] = {}
        for at, function in functions.items():
            path, _, key = at.partition(":")
            self.functions.setdefault(path, []).append((int(key) if key.isdigit() else key or None, function))

    def named(self, path: str, result: Any) -> Any:
        """What the forward gets in the place of a named value."""
        for key, function in self.functions.get(path, ()):
            result = _replaced(result, key, function)
        return result
