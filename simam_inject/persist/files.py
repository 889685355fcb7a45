"""`save`, `load` and `read`: a model's weights and SimAM sites in a safetensors file.

`load` reads the file, compares it with the layout that it was saved with, then with the model, adds SimAM, and copies
the weights. All checks but that of the result come before the first change, and nothing is unpickled or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from simam_inject.adapters import adapter_of, network_of
from simam_inject.attention import SimAM
from simam_inject.editing.attach import all_or_nothing, attended_in
from simam_inject.errors import FileError, ModelError, a_type, shortened
from simam_inject.modules import ModelT, check_injectable, unwrapped
from simam_inject.persist.fitting import State, check_fit, differences, fill, listed
from simam_inject.persist.record import KEY, Manifest, Record, versions_of

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what `torch.save` and `pickle.dump` write; those of safetensors are the length of its header."""


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's weights and SimAM sites into one safetensors file. The model is not changed.

    The tensors are the `state_dict`, under its own keys and all of them (tied weights are written once for each key),
    so that every reader of safetensors can use them. Sites with their strength and gain, recipes, versions and a hash
    of names and shapes are in the metadata. After a crash or on a full disk, the old file is still there.

    Args:
        model: any `nn.Module` or ultralytics `YOLO`, with or without SimAM; DDP, DataParallel and `torch.compile`
            wrappers are unwrapped.
        path: usually ends in `.safetensors`.

    Returns:
        The path.

    Raises:
        FileError: the model has something that such a file cannot store, or the file cannot be written. Names that end
            in `.pt` or `.pth` are refused, since such files are pickles.
        ModelError: the model is not a module.

    Example:
        >>> import tempfile, torchvision
        >>> from simam_inject import inject
        >>> from simam_inject.persist import read
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(read(save(model, f"{folder}/net.safetensors")).insertions)
        8
    """
    if isinstance(path, nn.Module):
        raise ModelError("the model comes first: save(model, path)")
    file = Path(path)
    if file.suffix in (".pt", ".pth"):
        raise FileError(f"{file}: a {file.suffix} file is a pickle; name this one {file.stem}.safetensors")
    network = network_of(unwrapped(model))
    state = state_of(network)
    _check_sites(network, state)
    packages = {"simam_inject", "torch"} | {type(module).__module__.partition(".")[0] for module in network.modules()}
    manifest = Manifest.of(network, versions=versions_of(sorted(packages)), layout=_layout_of(state))
    for name, tensor in state.items():
        try:
            serialize({name: torch.empty(0, dtype=tensor.dtype)})
        except (KeyError, SafetensorError):
            raise FileError(f"{name} is a tensor of {tensor.dtype}, which safetensors files cannot store") from None
    # Clones, not views: safetensors refuses tensors that share memory or are not contiguous.
    form = torch.contiguous_format
    tensors = {name: tensor.detach().cpu().clone(memory_format=form) for name, tensor in state.items()}
    with in_one_step(file) as unfinished:
        unfinished.write_bytes(serialize(tensors, {"format": "pt", KEY: manifest.model_dump_json()}))
    return file


def load(path: str | os.PathLike[str], model: ModelT, *, strict: bool = True) -> ModelT:
    """Add SimAM at the sites of a file, copy its weights, and return the same model. In place, all or nothing.

    Nothing of the file is unpickled or executed, and nothing of the model is run. A model that has the same sites
    already gets the weights, strengths and gains.

    Args:
        path: what `save` wrote.
        model: built by the same code as the saved one, with or without its SimAM. Wrappers (DDP, `torch.compile`) are
            unwrapped, but SimAM cannot be added to a wrapped model. Of a `YOLO`, the object and not its network:
            `train` starts from weights that were loaded into the object, and may build its network anew otherwise.
        strict: the names of tensors must agree. False: those in one of the two only, or that a class drops, are left
            out, with one warning; shapes and sites must agree in any case.

    Raises:
        FileError: the file is truncated, foreign, a pickle, of another format, or made for another model; the message
            says what differs. The model is unchanged.
        ModelError: the model is wrapped, or is not a module.

    Example:
        >>> import tempfile, torchvision
        >>> from simam_inject import inject, injected
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(injected(load(save(model, f"{folder}/net.safetensors"), torchvision.models.resnet18())))
        8
    """
    if isinstance(path, nn.Module):
        raise ModelError("the file comes first: load(path, model)")
    file, network = Path(path), network_of(unwrapped(model))
    with naming(file):
        manifest, tensors = _read(file)
        state = state_of(network)
        found = differences(tensors, state)
        try:
            check_fit(network, found, strict=strict)
            with with_sites(model, manifest):
                found |= fill(network, tensors, may_drop=not strict)
        except (ModelError, FileError) as error:
            raise FileError(f"{error}{manifest.age}") from error.__cause__
    if any(found.values()):
        warnings.warn(f"{file}: left out, as strict=False allows:\n{listed(found)}", stacklevel=2)
    adapter_of(model).after_load(model)
    return model


def read(path: str | os.PathLike[str]) -> Manifest:
    """The recipes, sites and versions in a saved file. No model is needed.

    Raises:
        FileError: it is truncated, foreign, a pickle, or of another format.

    Example:
        >>> for site in read("net.safetensors").insertions:  # doctest: +SKIP
        ...     print(site.path, site.e_lambda)
    """
    with naming(Path(path)):
        return _read(Path(path))[0]


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Every `FileError` inside starts with the name of the file."""
    try:
        yield
    except FileError as error:
        raise FileError(f"{file}: {error}") from error.__cause__


@contextlib.contextmanager
def with_sites(model: nn.Module, record: Record) -> Iterator[None]:
    """Add the sites of a file unless the model has them, and set strengths; or a `FileError`, and nothing changed."""
    network = network_of(unwrapped(model))
    is_new = bool(record.sites) and not any(attended_in(network))
    if is_new:
        check_injectable(network_of(model), "load the file")
    elif others := record.differences(network):
        raise FileError(
            "the model has other SimAM sites than the file; remove them with simam_inject.eject(model):\n"
            + shortened(others, joint="\n")
        )
    with all_or_nothing(network):
        if is_new:
            record.attach_to(network)
        yield
    record.set_strengths(network)


def state_of(network: nn.Module) -> State:
    """The `state_dict`; a `FileError` if it contains something else than plain tensors with data."""
    state = network.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise FileError(f"{name} is {a_type(value)}: a safetensors file stores tensors only")
        if value.is_meta:
            raise FileError(f"{name} is on the meta device and has no data")
        if type(value) not in (torch.Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
            found = f"{type(value).__name__}, {value.layout}, {value.dtype}"
            raise FileError(f"{name} is not a plain tensor ({found}): gather, dequantize or densify it first")
    return state


def _check_sites(network: nn.Module, state: State) -> None:
    """Refuse a bypassed SimAM, and one whose path the `state_dict` does not have (in activation checkpointing)."""
    named = {name[:end] for name in state for end, letter in enumerate(name) if letter == "."}
    for entry in attended_in(network):
        if isinstance(entry.attention, SimAM) and entry.attention.bypassed:
            raise FileError(f"{entry.site.module} is bypassed, which a file cannot say: leave bypass() first")
        for path in accumulate(entry.site.edit.module.split("."), "{}.{}".format):
            has_tensors = next(network.get_submodule(path).parameters(), None) is not None
            if path and path not in named and has_tensors:
                advice = "save without the wrapper or the state_dict method that renames or omits its tensors"
                raise FileError(f"{path} has SimAM, and the state_dict has no tensor of {path}: {advice}")


def read_tensors(file: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a safetensors file, which are mapped into memory, and its metadata; or a `FileError`."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"it is truncated, damaged, or not a safetensors file ({error})"
    try:
        with file.open("rb") as raw:
            start = raw.read(4)
    except OSError as error:
        reason, start = f"it cannot be read: {error.strerror or error}", b""
    if start.startswith(_PICKLES):
        reason = (
            "it is a pickle (written by torch.save?), which can run any code when it is read, and is not read here; if "
            "you trust it, load it yourself, inject, and use simam_inject.persist.save (a checkpoint of ultralytics: "
            "simam-inject check)"
        )
    raise FileError(reason)


def _read(file: Path) -> tuple[Manifest, State]:
    tensors, texts = read_tensors(file)
    if KEY not in texts:
        advice = "for weights alone use model.load_state_dict(safetensors.torch.load_file(path))"
        raise FileError(f"it was not written by simam_inject.persist.save and has no record of SimAM; {advice}")
    manifest = Manifest.read(texts[KEY], "its SimAM metadata")
    if _layout_of(tensors) != manifest.layout:
        raise FileError("its tensors are not those it was saved with: names or shapes were changed afterwards")
    return manifest, tensors


@contextlib.contextmanager
def in_one_step(path: Path) -> Iterator[Path]:
    """The path of a file to write, which takes the place of `path` in the end; or a `FileError`, and no trace."""
    target = path.resolve()  # a link stays a link
    is_device = target.exists() and not target.is_file()  # such as /dev/stdout: nothing can take its place
    unfinished = target if is_device else target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield unfinished
        if not is_device:
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, unfinished)
            unfinished.replace(target)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise FileError(f"cannot write {path}: {reason}; the previous file is unchanged") from error
    finally:
        if not is_device:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


def _layout_of(state: State) -> str:
    """SHA-256 over the sorted names and shapes. The dtype is left out: weights may be stored in half precision."""
    lines = (f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in sorted(state.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
