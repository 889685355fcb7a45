"""The weights of a file, loaded into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from simam_inject.errors import ModelError
from simam_inject.zoo.model import ZooModel
from simam_inject.zoo.names import holds_yolo
from simam_inject.zoo.yolo import read_yolo


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
        FileError: The file cannot be read, or one of `simam_inject.persist.save` was made for another model.
        ModelError: Its names or shapes are not those of the model.
    """
    from simam_inject.api import injected
    from simam_inject.persist import load
    from simam_inject.persist.checkpoints import read_checkpoint
    from simam_inject.persist.files import naming, read_tensors
    from simam_inject.persist.record import KEY

    note, texts = f"weights of {file.name}", dict[str, str]()
    state: Mapping[str, Any]
    if file.suffix == ".pt" and holds_yolo(file):
        if built.source != "ultralytics":
            raise ModelError(f"{file} is a checkpoint of ultralytics, and {built.name} is not one of its models")
        loaded = read_yolo(file)
        state, sites = loaded.model.state_dict(), len(injected(loaded))
        note += f" without its {sites} SimAM sites (give {file.name} as MODEL for these)" if sites else ""
    else:
        with naming(file):
            state, texts = read_tensors(file) if file.suffix == ".safetensors" else (read_checkpoint(file)[0], {})
    if KEY in texts:
        load(file, built.model)
    else:
        _copy(built, file, state)
    return replace(built, note=note)


def _copy(built: ZooModel, file: Path, state: Mapping[str, Any]) -> None:
    """Strict loading, with one message for everything that does not fit."""
    from simam_inject.adapters import adapter_of, network_of
    from simam_inject.persist.checkpoints import without_prefix
    from simam_inject.persist.files import UNFIT, differences, listed

    network = network_of(built.model)
    state = without_prefix(state, network.state_dict().keys())
    theirs, ours = (
        {name: value for name, value in one.items() if hasattr(value, "shape")} for one in (state, network.state_dict())
    )
    found = differences(theirs, ours)
    if any(found.values()):
        head_only = 0 < len(found[UNFIT]) <= 6 and sum(map(len, found.values())) == len(found[UNFIT])
        other = "another number of classes? give it with --num-classes N"
        hint = other if head_only else "a checkpoint of another model?"
        raise ModelError(f"{file} does not fit {built.name}:\n{listed(found)}\n  {hint}")
    network.load_state_dict(dict(state))
    adapter_of(built.model).loaded(built.model)
