"""File -> model: everything is checked before anything is touched; nothing is unpickled, traced or run.

read the header -> check the file against itself -> against the model -> put SimAM in -> copy the weights
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from simam_inject import adapters
from simam_inject.editing.attach import detach
from simam_inject.errors import FileError, ModelError, shortened
from simam_inject.modules import check_injectable, unwrapped
from simam_inject.persist.record import KEY, Manifest, Record
from simam_inject.persist.saving import State, layout_of, state_of, versions_of

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what `torch.save` and `pickle.dump` write; those of safetensors are the length of its header."""

UNFIT = "of another shape"


def load(path: str | os.PathLike[str], model: nn.Module, *, strict: bool = True) -> nn.Module:
    """Put SimAM where the file says, copy the file's weights, return the same model. In place, all or nothing.

    Nothing of the file is unpickled or executed, and nothing of the model is run. A model that has the file's
    very sites already gets the weights, strengths and gains.

    Args:
        path: what `save` wrote.
        model: built by the same code as the saved one, with or without its SimAM. Wrappers (DDP, `torch.compile`) are
            looked through, but SimAM cannot be put into a wrapped model any more.
        strict: names of tensors must agree. False: those in one of the two only are left out, with one warning;
            shapes and sites must agree all the same.

    Raises:
        FileError: the file is truncated, foreign, a pickle, of another format, or made for another model; the message
            says what differs. The model is as it was.
    """
    file, network = Path(path), adapters.network_of(unwrapped(model))
    with naming(file):
        manifest, tensors = _read(file)
        state = state_of(network)
        found = differences(tensors, state)
        if found[UNFIT] or (strict and any(found.values())):
            raise FileError(f"it does not fit this {type(network).__name__}:\n{listed(found)}{_age(manifest)}")
        is_there = _has_sites(network, manifest)
        if not is_there:
            try:
                check_injectable(adapters.network_of(model))
                manifest.attach_to(network)
            except (ModelError, FileError) as error:
                raise FileError(f"{error}{_age(manifest)}") from None
    try:
        copy_all(network, {name: tensor for name, tensor in tensors.items() if name in state})
    except BaseException:
        if not is_there:
            detach(network)
        raise
    manifest.set_strengths(network)
    if any(found.values()):
        warnings.warn(f"{file}: left out, as strict=False allows:\n{listed(found)}", stacklevel=2)
    adapters.update(model)
    return model


def read(path: str | os.PathLike[str]) -> Manifest:
    """What a saved file says beside its weights: recipes, sites, versions. No model is needed.

    Raises:
        FileError: it is truncated, foreign, a pickle, or of another format.
    """
    with naming(Path(path)):
        return _read(Path(path))[0]


def copy_all(network: nn.Module, tensors: State) -> None:
    """`load_state_dict` of tensors that were checked before; if it fails all the same, the tensors are as they were."""
    before = {name: value.detach().clone() for name, value in network.state_dict().items() if name in tensors}
    try:
        network.load_state_dict(tensors, strict=False)
    except BaseException:
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if name in before:
                    value.copy_(before[name])
        raise


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Start every message with the file's name."""
    try:
        yield
    except FileError as error:
        raise FileError(f"{file}: {error}") from error.__cause__


def _read(file: Path) -> tuple[Manifest, State]:
    """The manifest, and the tensors: mapped, so that those which are not used are not read."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            texts = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(_why_unreadable(file, error)) from None
    if KEY not in texts:
        raise FileError(
            "it was not written by simam_inject.persist.save and has no record of SimAM. For weights of a model "
            "without SimAM use model.load_state_dict(safetensors.torch.load_file(path)), before or after inject"
        )
    try:
        data = json.loads(texts[KEY])
    except (ValueError, RecursionError):
        raise FileError("its SimAM metadata is not JSON") from None
    manifest = Manifest.read(data, "its SimAM metadata")
    if layout_of(tensors) != manifest.layout:
        raise FileError("its tensors are not those it was saved with: names or shapes were changed afterwards")
    return manifest, tensors


def _why_unreadable(file: Path, error: Exception) -> str:
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as reason:
        return f"it cannot be read: {reason.strerror or reason}"
    if start.startswith(_PICKLES):
        return (
            "it is a pickle (written by torch.save?), which can run any code when it is read, and is not read here; if "
            "you trust it, load it yourself, inject, and use simam_inject.persist.save"
        )
    return f"it is truncated, damaged, or no safetensors file ({error})"


def differences(file: State, model: State) -> dict[str, list[str]]:
    """Maps a kind of difference to the tensors that differ in this way; `UNFIT` to those with another shape or kind."""
    found = {
        "in the model, not in the file": [name for name in model if name not in file],
        "in the file, not in the model": [name for name in file if name not in model],
        UNFIT: [],
    }
    for name in (name for name in model if name in file):
        ours, theirs = model[name], file[name]
        if ours.shape != theirs.shape:
            found[UNFIT].append(f"{name} (file {size_text(theirs.shape)}, model {size_text(ours.shape)})")
        elif _is_exact(ours) != _is_exact(theirs):
            found[UNFIT].append(f"{name} (file {theirs.dtype}, model {ours.dtype})")
    return found


def _is_exact(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def size_text(shape: tuple[int, ...]) -> str:
    """A shape, for people."""
    return "x".join(map(str, shape)) or "scalar"


def listed(found: dict[str, list[str]]) -> str:
    """The differences, one line for each kind."""
    return "\n".join(f"  {len(names)} {words}: {shortened(names)}" for words, names in found.items() if names)


def _has_sites(network: nn.Module, manifest: Manifest) -> bool:
    """True if the file's sites are in the model already, False if there are none in it.

    Raises:
        FileError: there are others.
    """
    present, wanted = Record.of(network).lambdas, manifest.lambdas
    if present == wanted or not present:
        return present == wanted
    lines = [
        f"  {place}: {_lambda(present.get(place))} in the model, {_lambda(wanted.get(place))} in the file"
        for place in sorted(present.keys() | wanted.keys())
        if present.get(place) != wanted.get(place)
    ]
    listed = shortened(lines, joint="\n")
    raise FileError(
        f"the model has other SimAM sites than the file; remove them with simam_inject.eject(model):\n{listed}"
    )


def _lambda(e_lambda: float | None) -> str:
    return "none" if e_lambda is None else f"e_lambda {e_lambda:g}"


def _age(manifest: Manifest) -> str:
    """Which libraries were other versions when the file was written, as a last line of a message."""
    here = versions_of(manifest.versions)
    changed = [
        f"{package} {version} (here {here.get(package, 'not installed')})"
        for package, version in manifest.versions.items()
        if here.get(package) != version
    ]
    return f"\n  It was written with {', '.join(changed)}." if changed else ""
