"""What ultralytics' networks do differently once this file is imported, since the library has no point of extension.

* `__init__` of every network class: a network whose yaml has a record is injected;
* `BaseModel.load`: the sites are the same as before, with a warning if the weights are those of an injected network;
* `BaseModel.fuse` and `is_fused`: blocks that would compute something else when folded are not folded;
* `torch_safe_load`: a checkpoint with a record but without its sites gives a warning.

Networks without a record and without SimAM are not affected.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import filterfalse
from typing import Any

from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules.block import RepVGGDW
from ultralytics.nn.modules.conv import Conv, ConvTranspose, RepConv
from ultralytics.nn.modules.head import Detect

from simam_inject.adapters import update, wrap
from simam_inject.api import inject
from simam_inject.attention import SimAM
from simam_inject.editing.attach import attended_in
from simam_inject.editing.hooks import hooks_on
from simam_inject.editing.presence import Presence, presences_in
from simam_inject.editing.rewrite import RewrittenMethod
from simam_inject.integrations.ultralytics.record import erase, lost_sites, network_in, read, recorded
from simam_inject.persist.record import Record
from simam_inject.persist.watching import warn_of_lost


def _build(original: Callable[..., None], network: nn.Module, /, *args: Any, **kwargs: Any) -> None:
    original(network, *args, **kwargs)
    found = read(network)
    if found is None or any(attended_in(network)):  # from the `__init__` of a base class
        return
    if isinstance(found, Record):  # no random number is drawn: the initial weights are an uninjected network's
        found.attach_to(network)
        update(network)
    else:
        erase(network)  # the record takes its place
        inject(network, found, verify=False)


def _load(original: Callable[..., Any], network: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> Any:
    before = [entry.attention for entry in attended_in(network)]
    record = Record.of(network) if all(isinstance(part, SimAM) for part in before) else None
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
    advice = "Use the file itself, YOLO(file), or call inject(YOLO(...), recipe)"
    warn_of_lost(network, source.state_dict(), advice, stacklevel=4)
    result = original(network, weights, *args, **kwargs)
    after = [entry.attention for entry in attended_in(network)]
    if record is not None and list(map(id, before)) != list(map(id, after)):
        record.attach_to(network)  # modules of the source took the place of its own, with its sites or without any
    return result


def _fuse(original: Callable[..., Any], network: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    roots = [(network.get_submodule(path), presence) for path, presence in presences_in(network).items()]
    if not roots:
        return original(network, *args, **kwargs)
    result = original(_foldable(network), *args, **kwargs)
    for root, presence in roots:  # of the network, or of parts that were injected by themselves
        _forget_deleted_branches(root, presence)
    return network if isinstance(result, nn.Module) else result


def _foldable(network: Any) -> Any:
    """A shallow copy of a network for `fuse()` and `is_fused()`, whose `modules()` omit the blocks that must stay.

    The network itself is not changed, since other threads may copy or run it meanwhile.
    """
    view, layers = copy.copy(network), copy.copy(network.model)
    vars(view)["_modules"] = {**network._modules, "model": layers}
    for part in (view, layers):
        vars(part)["modules"] = lambda part=part: filterfalse(must_stay, nn.Module.modules(part))
    return view


def must_stay(module: nn.Module) -> bool:
    """Folding this block would lose a SimAM or fold across it: there is one inside, before its activation."""
    if not isinstance(module, (Conv, ConvTranspose, RepConv, RepVGGDW)):
        return False
    inner = [part for name, child in module.named_children() if name != "act" for part in child.modules()]
    return any(map(hooks_on, inner)) or any(isinstance(hook, RewrittenMethod) for hook in hooks_on(module))


def _forget_deleted_branches(root: nn.Module, presence: Presence) -> None:
    """Stop checking sites in branches of heads that `fuse()` deleted, since only training needs these."""
    modules = dict(root.named_modules(remove_duplicate=False))
    heads = tuple(f"{path}." if path else "" for path, module in modules.items() if isinstance(module, Detect))

    def is_there(path: tuple[str, ...]) -> bool:
        return ".".join(path) in modules or not ".".join(path).startswith(heads)

    presence.holders = [holder for holder in presence.holders if is_there(holder[0])]
    presence.witnesses = [witness for witness in presence.witnesses if is_there(witness[0])]


def _read_checkpoint(original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    checkpoint, file = original(*args, **kwargs)
    network = network_in((checkpoint.get("ema") or checkpoint.get("model")) if isinstance(checkpoint, dict) else None)
    record = recorded(network)
    if isinstance(network, nn.Module) and record and (lost := lost_sites(network, record)):
        warnings.warn(f"SimAM lost: {file} {lost}; inject(YOLO(...), recipe) restores them", stacklevel=4)
    return checkpoint, file


for _kind in list(vars(tasks).values()):
    if isinstance(_kind, type) and issubclass(_kind, tasks.BaseModel) and "__init__" in vars(_kind):
        wrap(_kind, "__init__", _build)
wrap(tasks.BaseModel, "load", _load)
wrap(tasks.BaseModel, "fuse", _fuse)
wrap(tasks.BaseModel, "is_fused", _fuse)
wrap(tasks, "torch_safe_load", _read_checkpoint)
