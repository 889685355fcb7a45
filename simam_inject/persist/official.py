"""The checkpoints that SimAM's authors publish, for torchvision's ResNet and MobileNetV2.

The authors wrap the attended convolution and its SimAM in a Sequential, so `conv2.weight` is `conv2.0.weight` there;
where the attention is a member of the block's own Sequential, all later members are numbered higher. Both are solved
block by block (`layer1.0`, `features.3`, the rest), for names and shapes alone:

    exact       the tensor of the same name has the same shape
    unwrapped   the tensor of that name without a `.0` at the end of its module does
    in order    the block holds as many tensors as ours, and, one by one in order, they agree

Source: Yang et al., "SimAM", ICML 2021; the layout of the keys is described in docs/files.md.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simam_inject.api import eject, plan
from simam_inject.errors import FileError, NoMatchError, describe_exception, shortened
from simam_inject.persist.loading import copy_all, naming, size_text
from simam_inject.persist.saving import State, state_of
from simam_inject.recipe import adjusted, load_recipe

_FAMILIES = ("torchvision.models.resnet", "torchvision.models.mobilenetv2")
_BLOCK = re.compile(r"(layer\d+\.\d+|features\.\d+)\.")
_COUNTER = "num_batches_tracked"
"""Checkpoints of torch before 0.4.1 lack it; nothing in eval mode reads it."""
E_LAMBDA = 0.1
"""The authors' lambda for ImageNet and COCO."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """Where one tensor of the checkpoint goes."""

    source: str
    target: str
    how: str
    """`exact`, `unwrapped` or `in order`."""


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
    with naming(Path(path)):
        if type(model).__module__ not in _FAMILIES:
            raise FileError(
                "official checkpoints are for torchvision's ResNet, ResNeXt and MobileNetV2, not for "
                f"{type(model).__module__}.{type(model).__name__}"
            )
        weights, ignored = _weights(_read(Path(path)))
        ours = state_of(model)
        mapped = _map_keys(weights, ours)
        others = "the model has SimAM at other sites than the authors' model; call simam_inject.eject(model) first"
        try:
            planned = plan(model, adjusted(load_recipe("paper"), e_lambda=e_lambda))
        except NoMatchError as error:
            raise FileError(others) from error
        wanted = {skip.path for skip in planned.skips if skip.hit}
        if planned.present and not (planned.is_done and {site.path for site in planned.present} == wanted):
            raise FileError(others)
    planned.apply()
    try:
        copy_all(model, {entry.target: weights[entry.source] for entry in mapped})
    except BaseException:
        if planned.insertions:
            eject(model)
        raise
    reached = {entry.target for entry in mapped}
    sites = tuple(site.path for site in planned.present or planned.insertions)
    return OfficialReport(mapped, tuple(key for key in ours if key not in reached), ignored, sites)


def _read(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileError(f"it cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged zip or pickle fails in as many ways as it has bytes
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors, which could run code, and is not read"
        else:
            reason = "it is truncated, damaged, or no checkpoint"
        raise FileError(f"{reason} ({describe_exception(error)})") from None


def _weights(content: Any) -> tuple[State, tuple[str, ...]]:
    """The weights of a checkpoint, and the names of what else is in it."""
    if not isinstance(content, Mapping):
        raise FileError(f"it holds a {type(content).__name__}, not a checkpoint")
    holder = next((name for name in ("state_dict", "model") if isinstance(content.get(name), Mapping)), None)
    weights = content if holder is None else content[holder]
    wrong = [
        name for name, value in weights.items() if not isinstance(name, str) or not isinstance(value, torch.Tensor)
    ]
    if wrong or not weights:
        raise FileError(f"it is not a state_dict of tensors{f' ({wrong[0]!r} is not a tensor)' if wrong else ''}")
    return weights, () if holder is None else tuple(str(name) for name in content if name != holder)


def _map_keys(theirs: State, ours: State) -> tuple[Mapped, ...]:
    """Pair every key of a checkpoint with a key of the model.

    Raises:
        FileError: a block cannot be paired; the message says which, and what differs.
    """
    prefix = ""
    while all(key.startswith(f"{prefix}module.") for key in theirs):
        prefix += "module."
    if not any(key.endswith(_COUNTER) for key in theirs):
        ours = {key: tensor for key, tensor in ours.items() if not key.endswith(_COUNTER)}
    there = _blocks({key.removeprefix(prefix): tensor for key, tensor in theirs.items()})
    here = _blocks(ours)
    found: list[Mapped] = []
    problems: list[str] = []
    for name in dict.fromkeys([*here, *there]):
        one, other = there.get(name, {}), here.get(name, {})
        mapped = _by_name(one, other) or _in_order(one, other)
        found += [Mapped(prefix + entry.source, entry.target, entry.how) for entry in mapped]
        if not mapped:
            problems.append(f"  {name or 'outside of blocks'}: file {_only(one, other)}; model {_only(other, one)}")
    if problems:
        raise FileError("its tensors do not fit this model:\n" + shortened(problems, 3, joint="\n"))
    return tuple(found)


_Block = dict[str, tuple[int, ...]]
"""Key -> shape, in the order of the state."""


def _blocks(state: State) -> dict[str, _Block]:
    blocks: dict[str, _Block] = {}
    for key, tensor in state.items():
        found = _BLOCK.match(key)
        blocks.setdefault(found[1] if found else "", {})[key] = tuple(tensor.shape)
    return blocks


def _by_name(there: _Block, here: _Block) -> list[Mapped]:
    pairs = []
    for key, shape in there.items():
        if here.get(key) == shape:
            pairs.append(Mapped(key, key, "exact"))
        else:
            pairs.append(Mapped(key, re.sub(r"\.0(\.\w+)$", r"\1", key), "unwrapped"))
    fits = all(here.get(pair.target) == there[pair.source] for pair in pairs)
    return pairs if fits and sorted(pair.target for pair in pairs) == sorted(here) else []


def _in_order(there: _Block, here: _Block) -> list[Mapped]:
    pairs = [Mapped(source, target, "in order") for source, target in zip(there, here, strict=False)]
    fits = all(
        there[pair.source] == here[pair.target] and pair.source.rpartition(".")[2] == pair.target.rpartition(".")[2]
        for pair in pairs
    )
    return pairs if fits and len(there) == len(here) else []


def _only(block: _Block, other: _Block) -> str:
    """What one has and the other has not, or of another shape."""
    return shortened([f"{key} {size_text(block[key])}" for key in block if other.get(key) != block[key]], 3) or (
        "nothing else"
    )
