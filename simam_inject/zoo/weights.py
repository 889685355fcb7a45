"""The weights of a file, loaded into a model. What does not load is one message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from simam_inject.errors import FileError, ModelError
from simam_inject.zoo.records import ZooModel, fetching


def load_weights(built: ZooModel, file: Path) -> ZooModel:
    """Load a file's weights into a model, in place.

    Args:
        built: the model.
        file: `.safetensors` (one of `simam_inject.persist.save` also restores SimAM), or a `state_dict` that
            `torch.save` wrote, alone or under a key such as `state_dict`; for a YOLO also a checkpoint of ultralytics,
            which is a pickle: load one from people you trust.

    Returns:
        The same model, with the note changed.

    Raises:
        FileError: the file cannot be read, or one of `simam_inject.persist.save` was made for another model.
        ModelError: its names or shapes are not those of the model.
    """
    from simam_inject.persist import load
    from simam_inject.persist.checkpoints import read_checkpoint, without_prefix
    from simam_inject.persist.files import naming, read_tensors
    from simam_inject.persist.record import KEY

    noted = replace(built, note=f"weights of {file.name}")
    try:
        with naming(file):
            state, texts = read_tensors(file) if file.suffix == ".safetensors" else (read_checkpoint(file)[0], {})
    except FileError as error:
        if "could run code (ultralytics." not in str(error):  # the class that a restricted load refuses
            raise
        return _load_checkpoint(noted, file)
    if KEY in texts:
        load(file, built.model)
    else:
        _copy(built, file, without_prefix(state))
    return noted


def _load_checkpoint(built: ZooModel, file: Path) -> ZooModel:
    if built.source != "ultralytics":
        raise ModelError(f"{file} is a checkpoint of ultralytics, and {built.name} is not one of its models.")
    from ultralytics import YOLO

    from simam_inject.api import injected

    with fetching(str(file), pretrained=True):
        loaded = YOLO(str(file))
    _copy(built, file, loaded.model.state_dict())
    sites = len(injected(loaded))
    return replace(built, note=f"{built.note}, not its {sites} SimAM sites: name it as the model") if sites else built


def _copy(built: ZooModel, file: Path, state: Mapping[str, Any]) -> None:
    """Strict loading, with one message for everything that does not fit."""
    from simam_inject.adapters import network_of
    from simam_inject.persist.files import UNFIT, differences, listed

    network = network_of(built.model)
    file_state, own_state = (
        {name: value for name, value in one.items() if hasattr(value, "shape")} for one in (state, network.state_dict())
    )
    found = differences(file_state, own_state)
    if any(found.values()):
        only_shapes = [names for names in found.values() if names] == [found[UNFIT]] and len(found[UNFIT]) <= 6
        hint = (
            "another number of classes? Give it with --num-classes N."
            if only_shapes
            else "a checkpoint of another model?"
        )
        raise ModelError(f"{file} does not fit {built.name}:\n{listed(found)}\n  {hint}")
    network.load_state_dict(dict(state))
