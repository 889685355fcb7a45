"""Batches of any loader as arguments of one forward, and the copy of a network that they run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, combinations, islice
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from simam_inject.dataflow.example import Example
from simam_inject.dataflow.surroundings import same_random_states, uncompiled
from simam_inject.dataflow.twin import reachable, to_clone, twin_of
from simam_inject.editing.presence import presence_of
from simam_inject.errors import ModelError, a_type, describe_exception
from simam_inject.modules import check_injectable

_MOST_TRIALS = 15
"""Forwards that find out which of up to four tensors have to be converted; of more, all may be."""


def readable_twice(batches: Any) -> Iterable[Any]:
    """The batches as something that can be iterated over again and again: an iterator becomes a list.

    Raises:
        ModelError: they cannot be iterated over.
    """
    if isinstance(batches, Tensor):
        return [batches]
    if isinstance(batches, (str, bytes, Mapping)) or not isinstance(batches, Iterable):
        raise ModelError(
            f"batches is {a_type(batches)}; give a DataLoader, an iterable of tensors or of (input, target) "
            "pairs, or one tensor; for a YOLO object also the YAML file of its data set, and for a torch Dataset "
            "DataLoader(dataset, batch_size=...)"
        )
    return list(batches) if iter(batches) is batches else batches


def evaluated_twin(network: nn.Module, task: str) -> nn.Module:
    """A copy of the network in eval mode for a task, so that nothing of the network has to be restored.

    Functions that a user registered as hooks run on it with the very lists that they fill.

    Raises:
        ModelError: the network is wrapped, compiled or sharded, or a scripted part of it is in train mode.
    """
    try:
        check_injectable(network)
    except ModelError as error:
        reason = str(error).partition(": ")[0]
        order = "build, inject, calibrate, EMA copy, DistributedDataParallel, torch.compile"
        raise ModelError(f"{reason}; {task} before that. The order: {order}") from None
    if any(isinstance(part, torch.jit.ScriptModule) and part.training for part in network.modules()):
        raise ModelError("a part of this model is scripted, so it is not copied, and in train mode: call model.eval()")
    twin = twin_of(network, to_clone)
    twin.eval()  # some models override it
    for original, copied in zip(network.modules(), twin.modules(), strict=True):
        for table in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = vars(original)[table].items()
            vars(copied)[table].update((key, hook) for key, hook in hooks if _is_of_user(hook))
    return twin


def _is_of_user(hook: object) -> bool:
    """A function that refers to no module: one that does has to refer to the copy."""
    return isinstance(hook, FunctionType) and not any(isinstance(part, nn.Module) for part in reachable(hook))


class Batches:
    """Batches of any loader, which copies of a network run.

    The network gets copies of the tensors as they are. Only if it cannot run them, as few as possible are converted:
    floating-point ones to its dtype, and images of bytes to numbers from 0 to 1. No bytes are converted if the example
    of the injection had bytes.
    """

    def __init__(self, network: nn.Module, batches: Any) -> None:
        self._network = network
        self._batches = readable_twice(batches)
        self._like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
        own = presence_of(network)
        recorded = pytree.tree_leaves(None if own is None else own.example)
        self._takes_bytes = any(str(leaf).startswith("tensor uint8 ") for leaf in recorded)
        self._converted: dict[tuple[torch.dtype, ...], tuple[int, ...]] = {}
        """Which of these tensors have to be converted, by the dtypes of a batch."""

    def run(self, network: nn.Module, description: str) -> None:
        """Run a copy of the network on each batch in turn, with a progress bar if stderr is a terminal.

        Raises:
            ModelError: no batch is given, or the network cannot run one.
        """
        from rich.console import Console
        from rich.progress import track

        console, is_quiet = Console(stderr=True), not sys.stderr.isatty()
        shown = track(self._batches, description, console=console, transient=True, disable=is_quiet)
        count = 0
        for count, batch in enumerate(shown, 1):
            self._run(network, batch, count - 1)
        if not count:
            raise ModelError("no batch to calibrate on: the loader is empty")

    def _run(self, network: nn.Module, batch: Any, index: int) -> None:
        given = Example(*_arguments(network, batch, index))
        tensors = given.tensors
        described = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors[:3]]
        shapes = ", ".join(described) or "no tensor"
        if any(tensor.numel() == 0 for tensor in tensors):
            raise ModelError(f"batch {index} is empty, {shapes}")
        args, kwargs = self._fitted(given)
        try:
            with uncompiled():  # compiled, a part would trace the hooks of the calibration
                network(*args, **kwargs)
        except ModelError:
            raise
        except Exception as error:
            hint = ""
            if args and isinstance(error, TypeError) and "required positional argument" in str(error):
                hint = "; of a tuple the first entry is the input: for several give dicts by the names of the arguments"
            elif args and tensors and tensors[0].dim() <= 2:
                hint = "; these may be labels: of a pair the first entry is taken as the input"
            reason = describe_exception(error)
            raise ModelError(f"the model cannot run on batch {index}, {shapes}{hint}: {reason}") from error

    def _fitted(self, given: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the arguments on the device of the network, with as few tensors converted as it needs."""
        like, tensors = self._like, given.tensors
        others = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.dtype != like.dtype]
        if not self._takes_bytes:
            others += [tensor for tensor in tensors if tensor.dtype == torch.uint8 and tensor.dim() >= 3]

        def convert(chosen: Sequence[int], tensor: Tensor) -> Tensor:
            if not any(tensor is others[place] for place in chosen):
                return tensor.detach().to(like.device, copy=True)
            return tensor.detach().to(like.device, like.dtype) / (255 if tensor.dtype == torch.uint8 else 1)

        dtypes = tuple(tensor.dtype for tensor in tensors)
        if dtypes not in self._converted:
            every = range(len(others))
            choices = chain.from_iterable(combinations(every, count) for count in every)
            runs = (one for one in islice(choices, _MOST_TRIALS) if self._can_run(*given.fresh(partial(convert, one))))
            self._converted[dtypes] = next(runs, tuple(every))
        return given.fresh(partial(convert, self._converted[dtypes]))

    def _can_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """On another copy of the network, which measures nothing and fills no list of a user's hook."""
        twin = twin_of(self._network, to_clone)
        twin.eval()
        try:
            with same_random_states(), uncompiled():
                twin(*args, **kwargs)
        except Exception as error:
            return isinstance(error, torch.OutOfMemoryError)  # says nothing about dtypes; the run itself may raise it
        return True


def _arguments(network: nn.Module, batch: Any, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments. Of a dict, the keys of the injection's example and the parameters of the
    forward, or all where it has none of these and takes any; targets only where it requires them, or the example has.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, (tuple, list)) and batch:
        return (batch[0],), {}
    found = a_type(batch)
    if isinstance(batch, Mapping):
        signature, own = inspect.signature(network.forward), presence_of(network)
        recorded = own.example["kwargs"].keys() if own is not None and own.example is not None else set[str]()
        named = {key: each.default is each.empty for key, each in signature.parameters.items()}
        left_out = {key for key in ("label", "labels") if not named.get(key)} - recorded
        accepted = (batch.keys() & (recorded | named.keys())) - left_out
        if not accepted and any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
            accepted = batch.keys() - left_out
        keywords = {key: value for key, value in batch.items() if key in accepted}
        try:
            signature.bind(**(keywords or batch))
        except TypeError:
            if "img" in batch.keys() - named.keys():  # of ultralytics
                return (batch["img"],), {}
        if keywords:
            return (), keywords
        found = f"a dict of {sorted(map(str, batch))}, no argument of the model"
    elif hasattr(batch, "__array__"):
        found = "a NumPy array, not a tensor (torch.from_numpy makes one)"
    raise ModelError(f"batch {index} is {found}; give tensors, (input, target) pairs or dicts")
