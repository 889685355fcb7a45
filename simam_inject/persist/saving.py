"""Model -> file, in one step: a crash, a kill or a full disk leaves what was there before."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save as serialize
from torch import nn

from simam_inject.adapters import network_of
from simam_inject.errors import FileError
from simam_inject.modules import unwrapped
from simam_inject.persist.record import KEY, Manifest

State = Mapping[str, torch.Tensor]


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's weights, and where its SimAM is, into one safetensors file. The model is not changed.

    The tensors are the `state_dict`, under its own keys and all of them (tied weights are written once for each key),
    so that every reader of safetensors can use them. Sites with their strength and gain, recipes, versions and a hash
    of names and shapes stand in the metadata. The file appears in one step.

    Args:
        model: any `nn.Module` or ultralytics `YOLO`, with or without SimAM; DDP, DataParallel and `torch.compile`
            wrappers are looked through.
        path: by custom `NAME.safetensors`.

    Returns:
        The path.

    Raises:
        FileError: the model holds something that such a file cannot hold, or the file cannot be written.

    Example:
        >>> import tempfile, torchvision
        >>> from simam_inject import inject
        >>> from simam_inject.persist import read
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(read(save(model, f"{folder}/net.safetensors")).insertions)
        8
    """
    network = network_of(unwrapped(model))
    state = state_of(network)
    packages = {"simam_inject", "torch"} | {type(module).__module__.partition(".")[0] for module in network.modules()}
    manifest = Manifest.of(network, versions=versions_of(packages), layout=layout_of(state))
    # Clones, not views: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    _write_in_one_step(Path(path), tensors, {"format": "pt", KEY: manifest.model_dump_json()})
    return Path(path)


def state_of(network: nn.Module) -> State:
    """The `state_dict` as plain tensors, in its order.

    Raises:
        FileError: it holds something that is no tensor, or that has no numbers here.
    """
    state = network.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise FileError(f"{name} is a {type(value).__name__}: a safetensors file stores tensors only")
        if value.is_meta:
            raise FileError(f"{name} is on the meta device and has no data")
        if type(value) not in (torch.Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
            kind = type(value).__name__ if value.layout is torch.strided else str(value.layout)
            raise FileError(
                f"{name} is not a plain tensor ({kind}): gather, dequantise or densify it first; for sharded models "
                "see torch.distributed.checkpoint"
            )
    return state


def layout_of(state: State) -> str:
    """SHA-256 over the sorted names and shapes. The dtype is left out: weights may be stored in half precision."""
    lines = (f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in sorted(state.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_in_one_step(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    target = path.resolve()  # a link stays a link
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        content = serialize(tensors, metadata)
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, unfinished)
        unfinished.replace(target)
    except (SafetensorError, OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise FileError(f"cannot write {path}: {reason}; the previous file is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for package in sorted(packages):
        with contextlib.suppress(metadata.PackageNotFoundError):  # the user's own code
            found[package] = metadata.version(package)
    return found
