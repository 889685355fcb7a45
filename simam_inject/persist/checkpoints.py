"""Weights in a file of `torch.save`, which is a pickle: read by `torch.load(weights_only=True)`, which runs no code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from simam_inject.errors import FileError, a_type

_HOLDERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "weights")
"""Keys under which training programs store the `state_dict`."""


class HoldsObjectsError(FileError):
    """A file contains objects of a class that `torch.load(weights_only=True)` refuses to build."""

    def __init__(self, class_name: str) -> None:
        super().__init__(
            f"it holds more than tensors, which could run code ({class_name}), and is not loaded: save "
            "model.state_dict() instead"
        )
        self.class_name = class_name


def read_checkpoint(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors of a `state_dict`, alone or under a key such as `state_dict`, and the names of what is beside it.

    Raises:
        FileError: it cannot be read, holds other Python objects than tensors (the message names the first), or no
            `state_dict`.
    """
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileError(f"it cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged zip or pickle fails in as many ways as it has bytes
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            raise FileError(
                f"it is truncated, damaged, or not a checkpoint of torch.save ({type(error).__name__})"
            ) from error
        raise HoldsObjectsError(refused[1]) from error
    others: list[str] = []
    while holder := _holder_in(content):
        others += [str(name) for name in content if name != holder]
        content = content[holder]
    if not isinstance(content, Mapping):
        raise FileError(f"it holds {a_type(content)}, not a state_dict")
    if not content or not all(_is_entry(name, value) for name, value in content.items()):
        raise FileError("it is not a state_dict of tensors")
    return dict(content), tuple(others)


def without_prefix(weights: Mapping[str, Any], names: Collection[str] = ()) -> dict[str, Any]:
    """The same weights under the names of the model itself, which DataParallel, DDP or `torch.compile` wrapped.

    Args:
        names: those of the model, if they may have such a prefix of their own.
    """
    for prefix in ("module.", "_orig_mod."):
        if weights and weights.keys() != set(names) and all(name.startswith(prefix) for name in weights):
            return without_prefix({name.removeprefix(prefix): value for name, value in weights.items()}, names)
    return dict(weights)


def _holder_in(content: Any) -> str:
    names = _HOLDERS if isinstance(content, Mapping) else ()
    return next((name for name in names if isinstance(content.get(name), Mapping)), "")


def _is_entry(name: Any, value: Any) -> bool:
    return isinstance(name, str) and (isinstance(value, torch.Tensor) or name.endswith("_extra_state"))
