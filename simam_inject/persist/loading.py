"""File -> model: everything is checked before anything is touched; nothing is unpickled, traced or run.

read the header -> check the file against itself -> against the model -> put SimAM in -> copy the weights
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from simam_inject.adapters import network_of, refresh, remember
from simam_inject.editing.attach import detach
from simam_inject.errors import FileError, ModelError
from simam_inject.persist.record import KEY, Manifest, Record
from simam_inject.persist.tables import Entry, Table, difference, layout_of, state_of, table_of, unwrapped
from simam_inject.subjects import check_subject

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what `torch.save` and `pickle.dump` write."""


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
    file = Path(path)
    with _named(file):
        manifest, table = _read(file)
        network = network_of(unwrapped(model))
        found = difference(table, table_of(state_of(network)))
        if found.shapes or (strict and (found.missing or found.unexpected)):
            raise FileError(
                f"it was made for another model than this {type(network).__name__}:\n{found}{_age(manifest)}"
            )
        is_there = _has_sites(network, manifest)
        tensors = {name: tensor for name, tensor in _read_tensors(file).items() if name not in found.unexpected}
        if manifest.sites and not is_there:
            try:
                check_subject(model)
                manifest.attach_to(network)
            except (ModelError, FileError) as error:
                raise FileError(f"{error}{_age(manifest)}") from None
    try:
        copy_all(network, tensors)
    except BaseException:
        if not is_there:
            detach(network)
        raise
    manifest.set_strengths(network)
    if found.missing or found.unexpected:
        warnings.warn(f"{file}: left out, as strict=False allows:\n{found}", stacklevel=2)
    if manifest.sites:
        remember(model)
    refresh(model)
    return model


def read(path: str | os.PathLike[str]) -> Manifest:
    """What a saved file says beside its weights: recipes, sites, versions. No model is needed.

    Raises:
        FileError: it is truncated, foreign, a pickle, or of another format.
    """
    with _named(Path(path)):
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
def _named(file: Path) -> Iterator[None]:
    """Start every message with the file's name."""
    try:
        yield
    except FileError as error:
        raise FileError(f"{file}: {error}") from error.__cause__


def _read(file: Path) -> tuple[Manifest, Table]:
    table, texts = _read_header(file)
    if KEY not in texts:
        raise FileError(
            "it was not written by simam_inject.persist.save: it says nothing of SimAM. For weights of a model without "
            "SimAM use model.load_state_dict(safetensors.torch.load_file(path)), before or after inject"
        )
    try:
        data = json.loads(texts[KEY])
    except (ValueError, RecursionError):
        raise FileError("its SimAM metadata is not JSON") from None
    manifest = Manifest.read(data, "its SimAM metadata")
    if layout_of(table) != manifest.layout:
        raise FileError("its tensors are not those it was saved with: names or shapes were changed afterwards")
    return manifest, table


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Names and shapes of a safetensors file's tensors, and its metadata."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise FileError(f"it cannot be read: {error.strerror or error}") from None
    if start.startswith(_PICKLES):
        raise FileError(
            "it is a pickle (written by torch.save?), which can run any code when it is read, and is not read here; if "
            "you trust it, load it yourself, inject, and use simam_inject.persist.save"
        )
    if len(start) < 8 or int.from_bytes(start, "little") > size - 8:
        raise FileError(f"it is truncated, or no safetensors file ({size} bytes)")
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            table = {name: _entry(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            return table, opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"it is truncated, damaged, or no safetensors file ({error})") from None


def _entry(shape: tuple[int, ...], dtype: str) -> Entry:
    """Of a tensor whose dtype safetensors calls F32, BF16, C64, I64, U8, BOOL, ..."""
    return Entry(shape, dtype.startswith(("F", "BF", "C")), dtype)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"its tensors cannot be read ({error})") from None


def _has_sites(network: nn.Module, manifest: Manifest) -> bool:
    """True if the file's sites are in the model already, False if there are none in it.

    Raises:
        FileError: there are others.
    """
    present, wanted = _places(Record.read(Record.of(network))), _places(manifest)
    if present == wanted:
        return True
    if not present:
        return False
    lines = [
        f"  {place}: {_lambda(present.get(place))} in the model, {_lambda(wanted.get(place))} in the file"
        for place in sorted(present.keys() | wanted.keys())
        if present.get(place) != wanted.get(place)
    ]
    more = [f"  ... and {len(lines) - 5} more"] if len(lines) > 5 else []
    raise FileError(
        "the model has other SimAM sites than the file; simam_inject.eject(model) takes them out:\n"
        + "\n".join([*lines[:5], *more])
    )


def _places(record: Record) -> dict[str, float]:
    """Place -> lambda: what makes two sites the same computation."""
    return {
        (there.path or "(model)") + (f" before {there.reader}" if there.reader else ""): there.e_lambda
        for there in record.insertions
    }


def _lambda(e_lambda: float | None) -> str:
    return "none" if e_lambda is None else f"e_lambda {e_lambda:g}"


def _age(manifest: Manifest) -> str:
    """Which libraries were other versions when the file was written, as a last line of a message."""
    changed = []
    for package, version in manifest.versions.items():
        try:
            here = metadata.version(package)
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here != version:
            changed.append(f"{package} {version} (here {here})")
    return f"\n  It was written with {', '.join(changed)}." if changed else ""
