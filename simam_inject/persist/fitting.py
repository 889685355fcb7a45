"""Whether tensors of a file fit a network, and their copy into it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from simam_inject.errors import FileError, describe_exception, shortened
from simam_inject.nested import version_of
from simam_inject.verification.outputs import difference

State = Mapping[str, torch.Tensor]
UNFIT = "of another shape or kind"


def differences(file: State, model: State) -> dict[str, list[str]]:
    """Maps a kind of difference to the tensors that differ in this way; `UNFIT` to those with another shape or kind."""
    unfit = []
    first: dict[tuple[int, ...], str] = {}
    for name in [name for name in model if name in file]:
        ours, theirs = model[name], file[name]
        try:
            other = first.setdefault((ours.data_ptr(), *ours.shape, *ours.stride()), name) if ours.numel() else name
            reason = _why_unfit(ours, theirs)
            if reason is None and other != name and difference(theirs, file[other]) is not None:
                reason = f"the same tensor as {other} in the model, with other values in the file"
        except RuntimeError as error:  # few operations work with every layout and dtype
            reason = f"file {theirs.dtype}, model {ours.dtype}: {describe_exception(error)}"
        if reason is not None:
            unfit.append(f"{name} ({reason})")
    return {
        "in the model, not in the file": [name for name in model if name not in file],
        "in the file, not in the model": [name for name in file if name not in model],
        UNFIT: unfit,
    }


def _why_unfit(ours: torch.Tensor, theirs: torch.Tensor) -> str | None:
    """Why a tensor of the model cannot hold that of the file: another shape or kind, or values out of range."""
    if ours.shape != theirs.shape:
        return f"file {_size(theirs.shape)}, model {_size(ours.shape)}"
    if theirs.is_meta or theirs.layout is not torch.strided:
        return "without values in the file" if theirs.is_meta else f"a {theirs.layout} tensor in the file"
    if ours.dtype == theirs.dtype:
        return None
    dtypes = f"file {theirs.dtype}, model {ours.dtype}"
    if not torch.can_cast(theirs.dtype, ours.dtype) or not torch.can_cast(ours.dtype, theirs.dtype):
        return dtypes
    converted = theirs.to(ours.dtype)
    if ours.is_floating_point() or ours.is_complex():
        fits = torch.equal(converted.isfinite(), theirs.isfinite())
    else:
        fits = torch.equal(converted.to(theirs.dtype), theirs)
    return None if fits else f"{dtypes}, which cannot represent its values"


def listed(found: dict[str, list[str]]) -> str:
    """The differences, one line for each kind."""
    return "\n".join(f"  {len(names)} {words}: {shortened(names)}" for words, names in found.items() if names)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def fill(
    network: nn.Module, tensors: Mapping[str, Any], *, strict: bool = False, may_drop: bool = False
) -> dict[str, list[str]]:
    """Load tensors, and return those that its class drops, if it may; or a `FileError`, and all are as before."""
    state = network.state_dict()
    before = {name: value.detach().clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    try:
        found = {"with other values after load_state_dict": _load(network, tensors, before, strict=strict)}
        check_fit(network, found, strict=not may_drop)
    except BaseException:
        with suppress(FileError):
            _load(network, before, before)  # extra state, and tensors that a `state_dict` of its own copies
        state = network.state_dict()
        for name, value in before.items():
            with suppress(KeyError, RuntimeError), torch.no_grad():  # what cannot be written is as before
                state[name].copy_(value)
        raise
    return found


def _load(network: nn.Module, tensors: Mapping[str, Any], before: State, *, strict: bool = False) -> list[str]:
    """Load tensors into a network that has those `before`, and return the names of those that its class drops."""
    state = network.state_dict()
    sources = {name: value for name, value in state.items() if name in before}
    versions = {name: version_of(value) for name, value in sources.items()}
    state.clear()  # its `_metadata` stays: versions, which some classes require
    state.update(tensors)
    try:
        network.load_state_dict(state, **({} if strict else {"strict": False}))
    except Exception as error:  # the user's classes may have hooks and methods of their own
        raise FileError(f"{type(network).__name__}.load_state_dict raises {type(error).__name__}: {error}") from error
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return [
        name
        for name, value in network.state_dict().items()
        if name in sources
        and isinstance(tensors.get(name), torch.Tensor)
        and difference(tensors[name].to(value), value) is not None
        # What a class sets itself in a buffer, such as a counter that starts anew, was not dropped.
        and (
            name in parameters
            or (difference(before[name], value) is None and version_of(sources[name]) == versions[name])
        )
    ]


def check_fit(network: nn.Module, found: dict[str, list[str]], *, strict: bool = True) -> None:
    """Raise a `FileError` for tensors that differ between a file and a network, unless they may be left out."""
    if found.get(UNFIT) or (strict and any(found.values())):
        raise FileError(f"it does not fit this {type(network).__name__}:\n{listed(found)}")
