"""The hooks that run SimAM: data only, no reference to a module, so that copies and pickles of a model are whole.

A SimAM is a child of the module that holds it; the hook on that module finds it by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.editing.checking import SiteRecord, checked_sites
from simam_inject.errors import FileError, ModelError
from simam_inject.nested import entry_at, replace_entry

OUTPUT_HOOK, INPUT_HOOK = "simam_output", "simam_input"
"""Keys in a module's tables of hooks. Other tools may register the hook again under another key."""


def attend(module: nn.Module, site: SiteRecord, x: Any) -> Any:
    """Apply the SimAM at a site to a value.

    Raises:
        ModelError: the SimAM is gone, or the value is not a map of the planned number of dimensions.
    """
    attention = module._modules.get(site["child"])
    if attention is None:
        raise ModelError(f"SimAM at {site['path']} is missing: its module {site['child']!r} was removed; {ADVICE}")
    if isinstance(x, Tensor):  # a torch.fx proxy is not
        if x.dim() != len(site["shape"]):
            raise ModelError(
                f"SimAM at {site['path']} was planned for {len(site['shape'])} dimensions ({site['axes']}), but got a "
                f"tensor of shape {tuple(x.shape)}; use inputs with a batch dimension, or inject with such an example"
            )
        channels, shape = site["shape"][site["channel_dim"]], x.shape
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call] # sizes are tensors then
        if not is_traced and shape[site["channel_dim"]] != channels and channels in shape:
            raise ModelError(
                f"SimAM at {site['path']} was planned for {site['axes']} with {channels} channels, but got a tensor of "
                f"shape {tuple(x.shape)}, whose channels are in another dimension; {ADVICE}"
            )
    elif x is None or isinstance(x, (list, tuple, dict)):
        raise ModelError(f"SimAM at {site['path']} was planned for a tensor, but got a {type(x).__name__}; {ADVICE}")
    if site["channel_dim"] == -1 and not isinstance(attention, SimAM):  # other attention modules expect N, C, spatial
        return attention(x.movedim(-1, 1)).movedim(1, -1)
    return attention(x)


ADVICE = "call eject(model) before such a change and inject(model, recipe) after it"


class OutputHook:
    """Forward hook that applies SimAM to the output of a module, or to entries of it."""

    def __init__(self, sites: list[SiteRecord], has_bias: bool | None = None) -> None:
        self.sites = sites
        self.has_bias = has_bias
        """Whether a convolution had a bias: folding a norm into it gives it one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputHook:
        """Another hook over the same records, which nobody changes."""
        twin = memo[id(self)] = OutputHook(self.sites, self.has_bias)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a file holds."""
        has_bias = state.get("has_bias")
        if not isinstance(has_bias, (bool, type(None))):
            raise FileError("a hook of SimAM is not valid: has_bias is not a bool")
        self.__init__(checked_sites(state.get("sites"), "output"), has_bias)  # type: ignore[misc]

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> Any:
        """Apply SimAM to the output; registered on the module that holds the SimAM."""
        if self.has_bias is False and getattr(module, "bias", None) is not None:
            raise ModelError(
                f"{self.sites[0]['path']} has a bias now, so a norm may have been folded into it, across the SimAM "
                f"between them; {ADVICE}"
            )
        for site in self.sites:
            key = site["edit"]["key"]
            if key is None:
                output = attend(module, site, output)
            else:
                output = replace_entry(output, key, attend(module, site, _entry(site, output, key)))
        return output


class InputHook:
    """Forward pre-hook that applies SimAM to an input of a module."""

    def __init__(self, sites: list[SiteRecord], names: list[str]) -> None:
        self.sites = sites
        self.names = names
        """Parameters of the module's forward, so that an argument is found however it is passed."""

    def __deepcopy__(self, memo: dict[int, Any]) -> InputHook:
        """Another hook over the same records, which nobody changes."""
        twin = memo[id(self)] = InputHook(self.sites, self.names)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a file holds."""
        names = state.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FileError("a hook of SimAM is not valid: names is not a list of str")
        self.__init__(checked_sites(state.get("sites"), "input"), list(names))  # type: ignore[misc]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Apply SimAM to the argument; registered, with keyword arguments, on the module that holds the SimAM."""
        positional, keywords = list(args), dict(kwargs)
        for site in self.sites:
            holder, place = self._find(site, positional, keywords)
            given, key = holder[place], site["edit"]["key"]
            if key is None:
                holder[place] = attend(module, site, given)
            else:
                holder[place] = replace_entry(given, key, attend(module, site, _entry(site, given, key)))
        return tuple(positional), keywords

    def _find(self, site: SiteRecord, positional: list[Any], keywords: dict[str, Any]) -> tuple[Any, Any]:
        argument = site["edit"]["argument"]
        name = argument if isinstance(argument, str) else dict(enumerate(self.names)).get(argument)
        position = argument if isinstance(argument, int) else {n: i for i, n in enumerate(self.names)}.get(argument)
        if position is not None and position < len(positional):
            return positional, position
        if name in keywords:
            return keywords, name
        raise ModelError(f"SimAM at {site['path']} is applied to argument {argument!r}, which this call does not pass")


def _entry(site: SiteRecord, container: Any, key: int | str) -> Any:
    try:
        return entry_at(container, key)
    except KeyError:
        raise ModelError(
            f"SimAM at {site['path']} is applied to entry {key!r}, which is missing in this call"
        ) from None


def output_hook(module: nn.Module) -> OutputHook | None:
    """The output hook of a module, under whatever key."""
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, OutputHook)), None)


def input_hook(module: nn.Module) -> InputHook | None:
    """The input hook of a module, under whatever key."""
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, InputHook)), None)


def add_output_hook(module: nn.Module, hook: OutputHook) -> None:
    """Register the hook before all others, so that they see the output of SimAM."""
    module._forward_hooks[OUTPUT_HOOK] = hook  # type: ignore[index]
    module._forward_hooks.move_to_end(OUTPUT_HOOK, last=False)  # type: ignore[attr-defined]


def add_input_hook(module: nn.Module, hook: InputHook) -> None:
    """Register the pre-hook after all others: it applies SimAM to their result."""
    module._forward_pre_hooks[INPUT_HOOK] = hook  # type: ignore[index]
    module._forward_pre_hooks_with_kwargs[INPUT_HOOK] = True  # type: ignore[index]


def remove_hooks(module: nn.Module) -> None:
    """Remove the hooks of this package from a module, under any key."""
    for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, OutputHook)]:
        del module._forward_hooks[key]
        module._forward_hooks_with_kwargs.pop(key, None)
    for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, InputHook)]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


torch.serialization.add_safe_globals([OutputHook, InputHook])
