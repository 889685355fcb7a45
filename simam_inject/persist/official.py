"""The checkpoints that SimAM's authors publish, for torchvision's ResNet and MobileNetV2.

Source: Yang et al., "SimAM", ICML 2021; the layout of the keys is described in docs/files.md.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simam_inject.api import eject, plan
from simam_inject.errors import FileError, NoMatchError
from simam_inject.persist.loading import copy_all
from simam_inject.persist.official_keys import Mapped, map_keys
from simam_inject.persist.tables import state_of
from simam_inject.recipe import Recipe, load_recipe

_FAMILIES = ("torchvision.models.resnet", "torchvision.models.mobilenetv2")
_HOLDERS = ("state_dict", "model")
"""Entries of a training checkpoint that hold the weights."""
E_LAMBDA = 0.1
"""The authors' lambda for ImageNet and COCO."""


@dataclass(frozen=True, slots=True)
class OfficialReport:
    """What became of every key of an official checkpoint."""

    mapped: tuple[Mapped, ...]
    kept: tuple[str, ...]
    """Keys of the model that the checkpoint lacks and that keep their value: counters of batches only."""
    ignored: tuple[str, ...]
    """Entries of the checkpoint beside the weights: epoch, optimizer, ..."""
    sites: tuple[str, ...]
    """Paths of the SimAM sites in the model now."""

    def __str__(self) -> str:
        count = {how: sum(entry.how == how for entry in self.mapped) for how in ("exact", "unwrapped", "in order")}
        counts = ", ".join(f"{number} {how}" for how, number in count.items() if number)
        lines = [f"{len(self.mapped)} tensors ({counts}), {len(self.sites)} SimAM sites"]
        lines += [f"  {entry.source} -> {entry.target}  {entry.how}" for entry in self.mapped]
        lines += [f"  {key}  unchanged: not in the file" for key in self.kept]
        lines += [f"  {key}  ignored: not weights" for key in self.ignored]
        return "\n".join(lines)


def load_official(path: str | os.PathLike[str], model: nn.Module, *, e_lambda: float = E_LAMBDA) -> OfficialReport:
    """Load one of the authors' checkpoints into a torchvision model, and put SimAM where they have it.

    Changes the model in place, all or nothing. The file is read by `torch.load(weights_only=True)`.

    Args:
        path: a checkpoint, or its bare state dict.
        model: torchvision's ResNet, ResNeXt or MobileNetV2 of the same size, without SimAM or with the `paper` recipe.
        e_lambda: lambda of every site; the authors' is 0.1.

    Returns:
        What became of every key.

    Raises:
        FileError: the file is unsafe, damaged, or made for another model, or the model is of another family or has
            other SimAM sites. The model is as it was.
    """
    file = Path(path)
    if type(model).__module__ not in _FAMILIES:
        raise FileError(
            f"{file}: official checkpoints are for torchvision's ResNet, ResNeXt and MobileNetV2, not for "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    try:
        weights, ignored = _weights(_read(file))
        ours = {name: tuple(tensor.shape) for name, tensor in state_of(model).items()}
        mapped = map_keys({name: tuple(tensor.shape) for name, tensor in weights.items()}, ours)
    except FileError as error:
        raise FileError(f"{file}: {error}") from error.__cause__
    others = f"{file}: the model has SimAM at other sites than the authors' model; call simam_inject.eject(model) first"
    try:
        planned = plan(model, Recipe.from_dict(load_recipe("paper").to_dict() | {"e_lambda": e_lambda}))
    except NoMatchError as error:
        raise FileError(others) from error
    present = {site.path: site.e_lambda for site in planned.present}
    paths = [*(site.path for site in planned.insertions), *(skip.path for skip in planned.skips if skip.hit)]
    wanted = dict.fromkeys(paths, e_lambda)
    if present and present != wanted:
        raise FileError(others)
    if planned.insertions:
        planned.apply()
    try:
        copy_all(model, {entry.target: weights[entry.source] for entry in mapped})
    except BaseException:
        if planned.insertions:
            eject(model)
        raise
    reached = {entry.target for entry in mapped}
    return OfficialReport(mapped, tuple(key for key in ours if key not in reached), ignored, tuple(wanted))


def _read(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileError(f"it cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        first = str(error).partition("\n")[0].rstrip(". ")
        raise FileError(f"it holds more than tensors, which could run code, and is not read: {first}") from None
    except Exception as error:  # a damaged zip or pickle fails in as many ways as it has bytes
        first = str(error).partition("\n")[0].rstrip(". ")
        raise FileError(f"it is truncated, damaged, or no checkpoint ({type(error).__name__}: {first})") from None


def _weights(content: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The weights of a checkpoint, and the names of what else is in it."""
    if not isinstance(content, Mapping):
        raise FileError(f"it holds a {type(content).__name__}, not a checkpoint")
    holder = next((name for name in _HOLDERS if isinstance(content.get(name), Mapping)), None)
    weights = content if holder is None else content[holder]
    ignored = () if holder is None else tuple(str(name) for name in content if name != holder)
    wrong = [
        name for name, value in weights.items() if not isinstance(name, str) or not isinstance(value, torch.Tensor)
    ]
    if wrong or not weights:
        raise FileError(f"it is not a state_dict of tensors{f' ({wrong[0]!r} is not a tensor)' if wrong else ''}")
    return dict(weights), ignored
