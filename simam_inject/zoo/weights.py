"""The weights of a file, loaded into a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.errors import FileError, ModelError
from simam_inject.zoo.model import ZooModel
from simam_inject.zoo.names import holds_yolo
from simam_inject.zoo.yolo import read_yolo

if TYPE_CHECKING:
    from simam_inject.persist.record import Record


def load_weights(built: ZooModel, file: Path, *, new_head: bool = False) -> ZooModel:
    """Load a file's weights into a model, in place.

    Args:
        built: The model.
        file: `.safetensors` (one of `simam_inject.persist.save` also restores SimAM), or a `state_dict` that
            `torch.save` wrote, alone or under a key such as `state_dict`; for a YOLO also a checkpoint of ultralytics,
            which is a pickle: load one from people you trust.
        new_head: the layers for the classes keep their own weights where the file has another number of classes.

    Returns:
        The same model, with another note, and with the sizes of the recorded example if its library declares none.

    Raises:
        FileError: The file cannot be read, `load_state_dict` of the model raises an error or drops a tensor, or the
            model has other SimAM sites than the file or cannot have these.
        ModelError: Its names or shapes are not those of the model.
    """
    from simam_inject.adapters import adapter_of
    from simam_inject.api import injected
    from simam_inject.persist import read
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
            if file.suffix == ".safetensors":
                state, texts = read_tensors(file)
            else:
                state, others = read_checkpoint(file)
                if KEY in others:
                    raise FileError("it has SimAM: use load_from_checkpoint, and simam_inject.persist.save for a file")
    record = read(file) if KEY in texts else None
    head = _copy(built, file, state, record, new_head=new_head)
    note += f", with a new {' and '.join(head)}" if head else ""
    adapter_of(built.model).after_load(built.model)
    return replace(built, note=note, input_shapes=built.input_shapes or _recorded_shapes(built, record))


def _recorded_shapes(built: ZooModel, record: Record | None) -> tuple[tuple[int, ...], ...]:
    """Shapes of the inputs with which a network of the user's own was injected, if they are maps only."""
    from torch import Tensor

    from simam_inject.dataflow.example import example_like

    if record is None or record.example is None:
        return ()
    example = example_like(built.model, record.example)
    maps = [one for one in example.args if isinstance(one, Tensor) and one.is_floating_point()]
    is_all = len(maps) == len(example.args) and not example.kwargs
    return tuple(tuple(one.shape) for one in maps) if is_all else ()


def _copy(built: ZooModel, file: Path, state: Mapping[str, Any], record: Record | None, *, new_head: bool) -> list[str]:
    """Strict loading, with one message for everything that does not fit; returns the layers of a new head."""
    from simam_inject.adapters import network_of
    from simam_inject.persist.checkpoints import without_prefix
    from simam_inject.persist.files import naming, with_sites
    from simam_inject.persist.fitting import differences, fill, listed

    network = network_of(built.model)
    state = without_prefix(state, network.state_dict().keys())
    theirs, ours = (
        {name: value for name, value in one.items() if hasattr(value, "shape")} for one in (state, network.state_dict())
    )
    found = differences(theirs, ours)
    shapes = {name: (theirs[name].shape, ours[name].shape) for name in theirs.keys() & ours.keys()}
    head = [name for name, (a, b) in shapes.items() if a != b and a[1:] == b[1:]]
    is_head = 0 < len(head) <= 6 and len(head) == sum(map(len, found.values()))
    if any(found.values()) and not (is_head and new_head):
        hint = "another number of classes? give it with --num-classes N"
        hint = hint if is_head else "a checkpoint of another model?"
        raise ModelError(f"{file} does not fit {built.name}:\n{listed(found)}\n  {hint}")
    with naming(file), with_sites(built.model, record) if record else nullcontext():
        fill(network, {**state, **{name: ours[name] for name in head}}, strict=True)
    return sorted({name.rpartition(".")[0] for name in head})
