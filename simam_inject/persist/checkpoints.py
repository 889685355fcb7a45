"""Weights in a file of `torch.save`, and the checkpoints that SimAM's authors publish.

A file of `torch.save` is a pickle: it is read by `torch.load(weights_only=True)`, which runs no code.

The authors' checkpoints are for torchvision's ResNet and MobileNetV2, with the attended convolution and its SimAM in a
Sequential, so `conv2.weight` is `conv2.0.weight` there. Where the attention is an element of the block's own
Sequential, all later elements have higher numbers. So tensors are matched by name, or if that fails, all in order:

    exact       the tensor of the same name has the same shape
    unwrapped   the tensor of that name without a `.0` at the end of its module does
    in order    both have as many tensors, and, one by one, shapes and last names (`weight`, `running_mean`) agree

Source: Yang et al., "SimAM", ICML 2021; the layout of the keys is described in docs/files.md.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simam_inject.api import plan
from simam_inject.editing.attach import all_or_nothing
from simam_inject.errors import FileError, NoMatchError, a_type, plural
from simam_inject.persist.files import naming, state_of
from simam_inject.persist.fitting import State, differences, fill, listed
from simam_inject.planning.plan import Plan
from simam_inject.recipe import adjusted, load_recipe

_HOLDERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "weights")
"""Keys under which training programs store the `state_dict`."""
_FAMILIES = ("torchvision.models.resnet", "torchvision.models.mobilenetv2")
_COUNTER = "num_batches_tracked"
"""Checkpoints of torch before 0.4.1 lack it; it is not used in eval mode."""
E_LAMBDA = 0.1
"""The authors' lambda for ImageNet and COCO."""


def read_checkpoint(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors of a `state_dict`, alone or under a key such as `model`, and other names; or a `FileError`."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle fails in as many ways as it has bytes
        reason = f"it is truncated, damaged, or not a checkpoint of torch.save ({type(error).__name__})"
        if isinstance(error, OSError):
            reason = f"it cannot be read: {error.strerror or error}"
        elif refused := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it holds more than tensors ({refused[1]}), which could run code: save model.state_dict() instead"
        raise FileError(reason) from error
    others: list[str] = []
    while isinstance(content, Mapping):
        holder = next((name for name in _HOLDERS if isinstance(content.get(name), Mapping)), None)
        if holder is None:
            break
        others += [str(name) for name in content if name != holder]
        content = content[holder]
    if not isinstance(content, Mapping):
        raise FileError(f"it holds {a_type(content)}, not a state_dict")
    for name, value in content.items() or [(None, None)]:
        if not isinstance(name, str) or not (isinstance(value, torch.Tensor) or name.endswith("_extra_state")):
            raise FileError("it is not a state_dict of tensors")
    return dict(content), tuple(others)


def without_prefix(weights: Mapping[str, Any], names: Collection[str] = ()) -> dict[str, Any]:
    """Weights without the prefixes of DDP and `torch.compile`, and without any other before the names of the model, as
    the `net.` of a LightningModule.
    """
    prefix = next(iter(weights), "").partition(".")[0] + "."
    if weights.keys() == set(names) or not all(name.startswith(prefix) for name in weights):
        return dict(weights)
    rest = without_prefix({name.removeprefix(prefix): value for name, value in weights.items()}, names)
    return rest if prefix in ("module.", "_orig_mod.") or rest.keys() == set(names) else dict(weights)


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
        counts = Counter(entry.how for entry in self.mapped)
        shown = ", ".join(f"{counts[how]} {how}" for how in ("exact", "unwrapped", "in order") if counts[how])
        lines = [f"{plural(len(self.mapped), 'tensor')} ({shown}), {plural(len(self.sites), 'SimAM site')}"]
        lines += [f"  {entry.source} -> {entry.target}  {entry.how}" for entry in self.mapped]
        lines += [f"  {key}  unchanged: not in the file" for key in self.kept]
        lines += [f"  {key}  ignored: not weights" for key in self.ignored]
        return "\n".join(lines)


def load_official(path: str | os.PathLike[str], model: nn.Module, *, e_lambda: float = E_LAMBDA) -> OfficialReport:
    """Load one of the authors' checkpoints into a torchvision model, and add SimAM at the same places as they do.

    Changes the model in place, all or nothing. The file is read by `torch.load(weights_only=True)`.

    Args:
        path: a checkpoint, or its bare state dict.
        model: torchvision's ResNet, ResNeXt or MobileNetV2 of the same size, without SimAM or with the `paper` recipe.
        e_lambda: lambda of every site; the authors' is 0.1.

    Returns:
        What became of every key.

    Raises:
        FileError: the file is unsafe, damaged, or made for another model, or the model is of another family or has
            other SimAM sites. The model is unchanged.

    Example:
        >>> len(load_official("simam-net50.pth.tar", torchvision.models.resnet50()).sites)  # doctest: +SKIP
        16
    """
    with naming(Path(path)):
        if type(model).__module__ not in _FAMILIES:
            found = f"{type(model).__module__}.{type(model).__name__}"
            raise FileError(f"it is for a ResNet, ResNeXt or MobileNetV2 of torchvision, not for {found}")
        weights, ignored = read_checkpoint(Path(path))
        ours = state_of(model)
        mapped = _map_keys(weights, ours)
        planned = _plan(model, e_lambda)
        with all_or_nothing(model):
            planned.apply()
            fill(model, {entry.target: weights[entry.source] for entry in mapped})
    kept = ours.keys() - {entry.target for entry in mapped}
    sites = tuple(site.path for site in planned.present or planned.insertions)
    return OfficialReport(mapped, tuple(key for key in ours if key in kept), ignored, sites)


def _plan(model: nn.Module, e_lambda: float) -> Plan:
    """The plan of the paper's recipe, with nothing to insert if its sites are all that the model has."""
    try:
        planned = plan(model, adjusted(load_recipe("paper"), e_lambda=e_lambda))
        wanted = {skip.path for skip in planned.skips if skip.hit}
        fits = not planned.present or (planned.is_done and {site.path for site in planned.present} == wanted)
    except NoMatchError:
        fits = False
    if not fits:
        raise FileError("the model has SimAM at other sites than the authors' model; call eject(model) first")
    return planned


def _map_keys(weights: State, ours: State) -> tuple[Mapped, ...]:
    """Pair every key of a checkpoint with a key of the model; or a `FileError` that says what differs."""
    theirs = without_prefix(weights)
    if not any(key.endswith(_COUNTER) for key in theirs):
        ours = {key: tensor for key, tensor in ours.items() if not key.endswith(_COUNTER)}
    targets = [key if key in ours else re.sub(r"\.0(\.\w+)$", r"\1", key) for key in theirs]
    found = differences(dict(zip(targets, theirs.values(), strict=True)), ours)
    if not any(found.values()) and len(theirs) == len(ours):
        hows = ["exact" if key == target else "unwrapped" for key, target in zip(theirs, targets, strict=True)]
    elif [key.rpartition(".")[2] for key in theirs] == [key.rpartition(".")[2] for key in ours] and not any(
        differences(dict(zip(ours, theirs.values(), strict=True)), ours).values()
    ):
        targets, hows = list(ours), ["in order"] * len(theirs)
    else:
        raise FileError(f"its tensors do not fit this model:\n{listed(found)}")
    return tuple(map(Mapped, weights, targets, hows))
