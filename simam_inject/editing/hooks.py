"""The hooks that run SimAM: data only, without references to modules, so that copies and pickles are whole.

Only a rewritten method (`rewrite`) refers to a module: the one whose method it is.

A SimAM is a child of the module that holds it; the hook on that module finds it by name.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any, ClassVar, Self
from weakref import ProxyTypes

import torch
from torch import Tensor, nn
from torch._dynamo import (
    config,
)  # here, not in the function: in a process forked during the import, torch.manual_seed waits for ever
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from simam_inject.attention import SimAM
from simam_inject.editing.serialization import read_sites, write_sites
from simam_inject.errors import FileError, ModelError, a_type
from simam_inject.nested import entry_at, replace_entry
from simam_inject.planning.insertions import Input, Insertion, Rewritten

_ONE_LAYOUT = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
"""What they read and return has its channels in the second dimension."""
_FOLDING = {fuse_conv_bn_eval.__code__, fuse_linear_bn_eval.__code__}
"""Functions that copy a module and fold a norm into the copy."""
ADVICE = "call eject(model) before such a change and inject(model, recipe) after it"


class NoValueError(ModelError):
    """A call does not have the planned value: some outputs of detectors exist in eval mode only."""


def attend(module: nn.Module, site: Insertion, x: Any) -> Any:
    """Apply the SimAM at a site to a value.

    Raises:
        ModelError: the SimAM was removed, or the value is not a map of the planned number of dimensions.
    """
    attention = module._modules.get(site.child)
    if attention is None:
        raise ModelError(f"SimAM at {site.name} is missing: its module {site.child!r} was removed; {ADVICE}")
    if is_bypassed(module, site):  # a SimAM is called nevertheless, so that hooks on it run
        fits = isinstance(attention, SimAM) and isinstance(x, Tensor) and x.dim() == len(site.shape)
        return attention(x) if fits else x
    if isinstance(x, Tensor):  # a torch.fx proxy is not
        _check_shape(module, site, x)
    elif x is None or isinstance(x, (list, tuple, dict)):
        raise NoValueError(f"SimAM at {site.name} was planned for a tensor, but got {a_type(x)}; {ADVICE}")
    if isinstance(attention, SimAM):
        return attention(x)
    # Other attention modules expect N, C, spatial.
    return attention(x) if site.channel_dim == 1 else attention(x.movedim(-1, 1)).movedim(1, -1)


def is_bypassed(module: nn.Module, site: Insertion) -> bool:
    """The attention at a site returns its input, as inside `bypass(model)`; shapes are not checked then."""
    attention = module._modules.get(site.child)
    if isinstance(attention, SimAM):
        return attention.bypassed
    return any(bypass.active for bypass in getattr(attention, "_bypasses", ()))


def _check_shape(module: nn.Module, site: Insertion, x: Tensor) -> None:
    channels, shape = site.shape[site.channel_dim], x.shape
    if len(shape) != len(site.shape):
        raise NoValueError(
            f"SimAM at {site.name} was planned for {len(site.shape)} dimensions ({site.axes}), but got a "
            f"tensor of shape {tuple(shape)}; use inputs with a batch dimension, or inject with such an example"
        )
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call] # sizes are tensors then
    if not is_traced and shape[site.channel_dim] != channels and _has_other_layout(module, site, shape):
        raise ModelError(
            f"SimAM at {site.name} was planned for {site.axes} with {channels} channels, but got a tensor of "
            f"shape {tuple(shape)}, whose channels seem to be in another dimension; {ADVICE}"
        )


def _has_other_layout(module: nn.Module, site: Insertion, shape: torch.Size) -> bool:
    """The planned number of channels is found where the other layout has it, and the map is not square.

    Of three dimensions, it may be the first: one sample C, H, W is not the planned N, C, L.
    """
    others = (shape[-1 if site.channel_dim == 1 else 1],) if len(shape) > 3 else shape
    if isinstance(module, _ONE_LAYOUT) or site.shape[site.channel_dim] not in others:
        return False
    now, planned = (tuple(each[2:] if site.channel_dim == 1 else each[1:-1]) for each in (shape, site.shape))
    is_square = len(now) > 1 and now[1:] == now[:-1]  # in the other layout, a square map would not look square
    return now != planned and not is_square


def lost(site: Insertion, why: str) -> ModelError:
    """The error for a site whose SimAM does not run any more."""
    return ModelError(f"SimAM at {site.name} was lost: {why}; {ADVICE}")


class Hook:
    """What this package registers on a module, in one of its tables and under a fixed key.

    It has no `__init__`, which a pickle could call with anything: `made` makes one.
    """

    table: ClassVar[str]
    """Attribute of modules in which torch finds it."""
    key: str
    is_first: ClassVar[bool] = False
    """Before all other entries of the table."""

    @classmethod
    def made(cls, **state: Any) -> Self:
        """One with these attributes."""
        made = cls()
        vars(made).update(state)
        return made

    def put_on(self, module: nn.Module) -> None:
        """Register it on a module."""
        table = getattr(module, self.table)
        table[self.key] = self
        if self.is_first:
            table.move_to_end(self.key, last=False)

    def take_off(self, module: nn.Module) -> None:
        """Remove it from a module: other tools may have registered it again under another key."""
        table = getattr(module, self.table)
        for key in [key for key, hook in table.items() if hook is self]:
            del table[key]
            vars(module).get(f"{self.table}_with_kwargs", {}).pop(key, None)

    def is_on(self, module: nn.Module) -> bool:
        """The module runs this very hook."""
        return getattr(module, self.table).get(self.key) is self

    def belongs_to(self, module: nn.Module, name: str) -> bool:  # noqa: ARG002
        """The module on which it was found under this name is the one that it is for, or a shallow copy of it."""
        return True


class SiteHook(Hook):
    """What runs the SimAMs of one module for one `kind` of edit."""

    kind: ClassVar[str]
    sites: list[Insertion]
    is_ejected = False
    """`eject` removed it, perhaps with a part of the model that has the presence check."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another hook with the same records, which are never modified."""
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "sites": write_sites(self.sites)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a file holds."""
        self.sites = read_sites(state.get("sites"), self.kind)
        guard_hooks()

    def mend(self, module: nn.Module, root: nn.Module) -> bool:  # noqa: ARG002
        """Restore a hook that a tool dropped while it kept the SimAM, as `convert_sync_batchnorm` does.

        One that a tool has both copied and registered again, as `fuse_modules` does, is registered once.

        Returns:
            True if it was mended; False if the module has it, or a copy of it, under another key.

        Raises:
            ModelError: the model is being compiled, and no hook can be added.
        """
        found = [hook for hook in hooks_on(module) if type(hook) is type(self)]
        if len(found) == 1:
            return False
        if torch.compiler.is_dynamo_compiling():
            raise lost(self.sites[0], "its hook was removed")
        for hook in found:
            hook.take_off(module)
        self.put_on(module)
        return True


class OutputHook(SiteHook):
    """Forward hook that applies SimAM to the output of a module, or to entries of it; the hooks after it see this."""

    table, key, kind, is_first = "_forward_hooks", "simam_output", "output", True

    has_bias: bool | None
    """Whether a convolution had a bias: folding a norm into it gives it one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another hook. If torch copies its module to fold a norm into the copy, the bias will include the norm."""
        twin = super().__deepcopy__(memo)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code in _FOLDING and self.is_on(frame.f_locals[frame.f_code.co_varnames[0]]):
                twin.has_bias = False
            frame = frame.f_back
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a file holds."""
        super().__setstate__(state)
        self.has_bias = state.get("has_bias")
        if not isinstance(self.has_bias, (bool, type(None))):
            raise FileError("a hook of SimAM is not valid: has_bias is not a bool")

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> Any:
        """Apply SimAM to the output; registered on the module that holds the SimAM."""
        if self.has_bias is False and getattr(module, "bias", None) is not None:
            raise ModelError(
                f"{self.sites[0].path} has a new bias, so a norm may have been folded into it, across the SimAM "
                f"between them; {ADVICE}"
            )
        for site in self.sites:
            output = _attend_entry(module, site, output)
        return output


class InputHook(SiteHook):
    """Forward pre-hook that applies SimAM to an input of a module, after all pre-hooks that were registered before."""

    table, key, kind = "_forward_pre_hooks", "simam_input", "input"

    def put_on(self, module: nn.Module) -> None:
        """Register the pre-hook, with keyword arguments."""
        super().put_on(module)
        module._forward_pre_hooks_with_kwargs[self.key] = True  # type: ignore[index]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Apply SimAM to the argument; registered on the module that holds the SimAM."""
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        for site in self.sites:
            place = _place_of(module, site, given)
            if place is not None:
                given[place] = _attend_entry(module, site, given[place])
        return tuple(given[place] for place in range(len(args))), {name: given[name] for name in kwargs}


def _place_of(module: nn.Module, site: Insertion, given: dict[Any, Any]) -> int | str | None:
    """The argument of a site in a call, which may pass it by position or by keyword; None if it need not."""
    assert isinstance(site.edit, Input)
    argument = site.edit.argument
    if argument in given:
        return argument
    for position, name in enumerate(inspect.signature(module.forward).parameters):
        other = name if argument == position else position
        if argument in (position, name) and other in given:
            return other
    if is_bypassed(module, site):
        return None
    raise ModelError(f"SimAM at {site.name} is applied to argument {argument!r}, which this call does not pass")


def _attend_entry(module: nn.Module, site: Insertion, value: Any) -> Any:
    """The value with SimAM applied to it, or to the entry of it that the site names."""
    assert not isinstance(site.edit, Rewritten)
    key = site.edit.key
    if key is None:
        return attend(module, site, value)
    try:
        entry = entry_at(value, key)
    except KeyError:
        if is_bypassed(module, site):
            return value
        raise NoValueError(f"SimAM at {site.name} is applied to entry {key!r}, which is missing in this call") from None
    attended = attend(module, site, entry)
    return value if attended is entry else replace_entry(value, key, attended)


def all_hooks(module: nn.Module) -> list[Hook]:
    """What this package has registered on a module, under whatever key."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    tables: tuple[Any, ...] = (module._forward_hooks, module._forward_pre_hooks, vars(module))
    entries = [entry for table in tables for entry in table.items()]
    found: list[tuple[object, Any]] = [(name, behind(value)) for name, value in entries]
    return [hook for name, hook in found if issubclass(type(hook), Hook) and hook.belongs_to(module, str(name))]


def behind(value: object) -> object:
    """The rewritten method inside of wrappers, which `torch.compile` and `functools.wraps` give its attributes."""
    if type(value) in ProxyTypes:  # which raise once their object is gone
        return value
    return getattr(value, "__dict__", {}).get("rewritten", value)


def hooks_on(module: nn.Module) -> list[SiteHook]:
    """The hooks and rewritten methods on a module that run SimAM."""
    return [hook for hook in all_hooks(module) if isinstance(hook, SiteHook)]


def guard_hooks() -> None:
    """Make `torch.compile` look at hooks, for all models of the process.

    By default it does not: of two models of one class, one would run the code that was compiled for the other.
    """
    config.skip_nnmodule_hook_guards = False
    # In torch 2.14, a setting is that of the thread which sets it, and only its default is that of all.
    config._config["skip_nnmodule_hook_guards"].default = False  # type: ignore[attr-defined]


torch.serialization.add_safe_globals([OutputHook, InputHook])
