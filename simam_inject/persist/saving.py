"""Model -> file."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simam_inject.errors import FileError
from simam_inject.integrations import network_of
from simam_inject.persist.container import write_atomically
from simam_inject.persist.manifest import KEY, Manifest
from simam_inject.persist.tables import layout_of, state_of, table_of
from simam_inject.persist.wrappers import unwrapped
from simam_inject.rewriting.classes import is_injected, specification_of
from simam_inject.rewriting.provenance import recipes_in


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's weights, and where its SimAM is, into one safetensors file. The model is not changed.

    The tensors are the `state_dict`, under its own keys and all of them (tied weights are written once for each key),
    so that every reader of safetensors can use them. Recipes, sites, versions and a hash of names and shapes stand in
    the metadata. The file appears in one step: until then, and after any failure, what was there before is untouched.

    Args:
        model: any `nn.Module` or ultralytics `YOLO`, with or without SimAM; DDP, DataParallel and `torch.compile`
            wrappers are looked through.
        path: by custom `NAME.safetensors`.

    Returns:
        The path.

    Raises:
        FileError: the model holds something that such a file cannot hold, or the file cannot be written.
    """
    network = network_of(unwrapped(model))
    manifest, state = _manifest_of(network)
    # Clones, not views: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    write_atomically(Path(path), tensors, {"format": "pt", KEY: manifest.to_json()})
    return Path(path)


def _manifest_of(network: nn.Module) -> tuple[Manifest, dict[str, torch.Tensor]]:
    sites = []
    for path, module in network.named_modules():
        if is_injected(module):
            recorded = specification_of(module)
            if recorded.arguments is None and recorded.fingerprints:
                raise FileError(
                    f"the SimAM inside {path or 'the model'} ({type(module).__name__}) cannot be written down, since "
                    "that module is called with an object that is no data; save model.state_dict() and keep the recipe"
                )
            sites.append((path, recorded))
    state = state_of(network)
    versions = tuple(sorted(_versions(network).items()))
    return Manifest(tuple(sites), recipes_in(network), versions, layout_of(table_of(state))), state


def _versions(network: nn.Module) -> dict[str, str]:
    """Versions of this package, torch, and every installed package that a class of the model comes from."""
    packages = {"simam_inject", "torch"} | {type(module).__module__.partition(".")[0] for module in network.modules()}
    found: dict[str, Any] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # the user's own code
    return found
