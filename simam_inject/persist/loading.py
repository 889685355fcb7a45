"""File -> model: everything is checked and worked out before anything is touched.

read the header -> check the file against itself -> against the model -> prepare the sites -> put them in -> copy
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from simam_inject.errors import FileError, InjectError
from simam_inject.integrations import network_of, refresh
from simam_inject.persist.container import read_header, read_tensors
from simam_inject.persist.manifest import KEY, Manifest
from simam_inject.persist.replaying import plan_recorded
from simam_inject.persist.tables import Table, difference, layout_of, state_of, table_of
from simam_inject.persist.wrappers import unwrapped
from simam_inject.planning.records import Insertion
from simam_inject.surgery import eject, injected


def load(path: str | os.PathLike[str], model: nn.Module, *, strict: bool = True) -> nn.Module:
    """Put SimAM where the file says, copy the file's weights, return the same model. In place, all or nothing.

    Nothing is ever unpickled or executed. A model that has the file's very SimAM sites already only gets the weights.

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
    file = Path(path)
    with _about(file):
        manifest, table = _read(file)
        network = network_of(unwrapped(model))
        found = difference(table, table_of(state_of(network)))
        if found.shapes or (strict and (found.missing or found.unexpected)):
            told = "\n".join(found.lines())
            raise FileError(
                f"it was made for another model than this {type(network).__name__}:\n{told}{_age(manifest)}"
            )
        planned = None
        if not _has_sites(network, manifest):
            try:
                planned = plan_recorded(model, network, manifest)
            except InjectError as error:
                raise FileError(f"{error}{_age(manifest)}") from None
        tensors = {name: tensor for name, tensor in read_tensors(file).items() if name not in found.unexpected}
    if found.missing or found.unexpected:
        warnings.warn(f"{file}: left out, as strict=False allows:\n" + "\n".join(found.lines()), stacklevel=2)
    if planned is not None:
        planned.apply()
    try:
        copy_all(network, tensors)
    except BaseException:
        if planned is not None:
            eject(model)
        raise
    refresh(model)
    return model


def read(path: str | os.PathLike[str]) -> Manifest:
    """What a saved file tells beside its weights: recipes, sites, versions. No model is needed.

    Raises:
        FileError: it is truncated, foreign, a pickle, or of another format.
    """
    with _about(Path(path)):
        return _read(Path(path))[0]


def copy_all(network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
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


@contextmanager
def _about(file: Path) -> Iterator[None]:
    """Start every message with the file's name."""
    try:
        yield
    except FileError as error:
        raise FileError(f"{file}: {error}") from error.__cause__


def _read(file: Path) -> tuple[Manifest, Table]:
    table, metadata = read_header(file)
    if KEY not in metadata:
        raise FileError(
            "it was not written by simam_inject.persist.save: it says nothing of SimAM. For weights of a model without "
            "SimAM use model.load_state_dict(safetensors.torch.load_file(path)), before or after inject"
        )
    manifest = Manifest.from_json(metadata[KEY])
    if layout_of(table) != manifest.layout:
        raise FileError("its tensors are not those it was saved with: names or shapes were changed afterwards")
    return manifest, table


def _has_sites(network: nn.Module, manifest: Manifest) -> bool:
    """True if the file's sites are in the model already, False if there are none in it.

    Raises:
        FileError: there are others.
    """
    present, wanted = _places(injected(network)), _places(manifest.insertions)
    if present == wanted:
        return True
    if not present:
        return False
    lines = [
        f"  {place}: {_told(present.get(place))} in the model, {_told(wanted.get(place))} in the file"
        for place in sorted(present.keys() | wanted.keys())
        if present.get(place) != wanted.get(place)
    ]
    more = [f"  ... and {len(lines) - 5} more"] if len(lines) > 5 else []
    raise FileError(
        "the model has other SimAM sites than the file; simam_inject.eject(model) takes them out:\n"
        + "\n".join([*lines[:5], *more])
    )


def _places(insertions: tuple[Insertion, ...]) -> dict[str, float]:
    """Place -> lambda: what makes two sites the same computation."""
    return {
        (there.path or "(model)") + (f" before {there.reader}" if there.reader else ""): there.e_lambda
        for there in insertions
    }


def _told(e_lambda: float | None) -> str:
    return "none" if e_lambda is None else f"e_lambda {e_lambda:g}"


def _age(manifest: Manifest) -> str:
    """Which libraries were other versions when the file was written, as a last line of a message."""
    changed = []
    for package, version in manifest.versions:
        try:
            here = metadata.version(package)
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here != version:
            changed.append(f"{package} {version} (here {here})")
    return f"\n  It was written with {', '.join(changed)}." if changed else ""
