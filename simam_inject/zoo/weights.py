"""The weights of a file, loaded into a model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from simam_inject.errors import ModelError, describe_exception
from simam_inject.zoo.records import ZooModel

_NESTED = ("state_dict", "model_state_dict", "model", "model_state", "net", "weights")
"""Keys under which training programs store the `state_dict`."""


def load_weights(built: ZooModel, file: Path) -> ZooModel:
    """Load a file's weights into a model, in place.

    Args:
        built: The model.
        file: `.safetensors` (one of `simam_inject.persist.save` also restores SimAM), or a `state_dict` that
            `torch.save` wrote, alone or under a key such as `state_dict`; for a YOLO also a checkpoint of ultralytics,
            which is a pickle: load one from people you trust.

    Returns:
        The same model, with the note changed.

    Raises:
        ModelError: The file cannot be read, or its names or shapes are not those of the model.
        FileError: A file of `simam_inject.persist.save` was made for another model.
    """
    note = f"weights of {file.name}"
    try:
        if file.suffix == ".safetensors":
            state = _read_safetensors(file)
        elif (state := _read_pickle(file)) is None:
            state, note = _read_checkpoint(built, file)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{file} cannot be read: {describe_exception(error)}.") from None
    if state is None:
        from simam_inject.persist import load

        load(file, built.model)
    else:
        _copy(built, file, state)
    return replace(built, note=note)


def _read_safetensors(file: Path) -> Mapping[str, Any] | None:
    """The tensors of a file; None for one that `simam_inject.persist.save` wrote, whose header has the sites."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        if any(key.startswith("simam") for key in opened.metadata() or {}):
            return None
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is not a dict


def _read_pickle(file: Path) -> Mapping[str, Any] | None:
    """The `state_dict` in a file that torch.save wrote; None if it contains objects of ultralytics."""
    import torch

    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "ultralytics" in str(error):
            return None
        raise ModelError(
            f"{file} holds Python objects, which can run any code when they are read, and is not loaded: save "
            "model.state_dict() instead."
        ) from None
    while isinstance(data, Mapping) and (key := next((k for k in _NESTED if isinstance(data.get(k), Mapping)), None)):
        data = data[key]
    if not isinstance(data, Mapping) or not any(isinstance(value, torch.Tensor) for value in data.values()):
        raise ModelError(f"{file} holds a {type(data).__name__}, not a state_dict.")
    prefix = next((p for p in ("module.", "_orig_mod.") if all(str(name).startswith(p) for name in data)), "")
    return {str(name).removeprefix(prefix): value for name, value in data.items()}


def _read_checkpoint(built: ZooModel, file: Path) -> tuple[Mapping[str, Any], str]:
    """The weights of a checkpoint of ultralytics, and a note that says if its SimAM sites are left out."""
    if built.source != "ultralytics":
        raise ModelError(f"{file} is a checkpoint of ultralytics, and {built.name} is not one of its models.")
    from ultralytics import YOLO

    from simam_inject.api import injected

    loaded = YOLO(str(file))
    sites = len(injected(loaded))
    left_out = f", not its {sites} SimAM sites: name it as the model" if sites else ""
    return loaded.model.state_dict(), f"weights of {file.name}{left_out}"


def _copy(built: ZooModel, file: Path, state: Mapping[str, Any]) -> None:
    """Strict loading, with one message for everything that does not fit."""
    from simam_inject.adapters import network_of
    from simam_inject.persist.files import UNFIT, differences, listed

    network = network_of(built.model)
    theirs, ours = (
        {name: value for name, value in one.items() if hasattr(value, "shape")} for one in (state, network.state_dict())
    )
    found = differences(theirs, ours)
    if any(found.values()):
        head_only = 0 < len(found[UNFIT]) <= 6 and sum(map(len, found.values())) == len(found[UNFIT])
        other = "another number of classes? Give it with --num-classes N."
        hint = other if head_only else "a checkpoint of another model?"
        raise ModelError(f"{file} does not fit {built.name}:\n{listed(found)}\n  {hint}")
    network.load_state_dict(dict(state))
