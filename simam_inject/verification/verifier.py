"""The checks. Each compares the model with itself: its stock classes, its SimAMs bypassed, its SimAMs live.

The stock model needs no copy, since taking a rewrite out means giving each module its class back for the moment.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from simam_inject.attention import SimAM, simam
from simam_inject.discovery.naming import join
from simam_inject.planning.records import Check, Verification
from simam_inject.rewriting.records import Edit
from simam_inject.rewriting.rewriter import edits_in, stock
from simam_inject.rewriting.unfused import unfused
from simam_inject.tracing.inputs import Example
from simam_inject.tracing.snapshot import mode, same_buffers, same_random_state, unchanged
from simam_inject.verification.outputs import all_finite, difference, tensors_in

SEED = 0
_Edited = tuple[str, nn.Module, Edit]
"""Path of the module that holds a SimAM, that module, the edit."""


Marks = tuple[tuple[str, int, int | None], ...]


def tensor_marks(model: nn.Module) -> Marks:
    """Name, identity and version of every parameter and buffer: another if somebody writes into it."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return tuple((name, id(t), None if t.is_inference() else t._version) for name, t in tensors)


def check_model(model: nn.Module, example: Example, before: Marks | None = None) -> Verification:
    """Run every check on an injected model. The model is left as found.

    Args:
        before: `tensor_marks` from before the injection, where they are known.
    """
    edits = list(edits_in(model))
    planned = _as_planned(edits)
    if planned.ok is False:
        return Verification((planned,))
    marks = tensor_marks(model)
    with ExitStack() as stack:
        for context in (unchanged(model), same_random_state(), unfused(model), torch.no_grad()):
            stack.enter_context(context)
        returned = _module_values(model, edits)
        with stock(model):
            keys, parameters = list(model.state_dict()), [id(p) for p in model.parameters()]
            plain, calls = _run_watched(model, example, list(returned.values()))
        attending = [getattr(holder, edit.child) for _, holder, edit in edits]
        live, ran = _run_watched(model, example, [*attending, *{id(holder): holder for _, holder, _ in edits}.values()])
        # A module called elsewhere too would be attended there as well by a hook.
        returned = {
            index: module
            for index, module in returned.items()
            if len(calls[id(module)]) == len(ran[id(getattr(edits[index][1], edits[index][2].child))])
        }
        checks = [
            planned,
            _same_tensors(model, keys, parameters, before is None or before == marks),
            _bypassed(model, example, plain),
            _bypassed_in_training(model, example),
            _ran_as_planned(edits, ran),
            _finite(plain, live),
            _against_hooks(model, example, edits, returned),
        ]
    return Verification(tuple(checks))


@contextmanager
def bypassed(modules: list[SimAM]) -> Iterator[None]:
    """These SimAMs are the identity inside, and as they were afterwards."""
    before = [module.bypassed for module in modules]
    try:
        for module in modules:
            module.bypassed = True
        yield
    finally:
        for module, was_bypassed in zip(modules, before, strict=True):
            module.bypassed = was_bypassed


def attentions(model: nn.Module) -> list[SimAM]:
    """The SimAM modules that injection put into the model."""
    found = (holder._modules.get(edit.child) for _, holder, edit in edits_in(model))
    return [module for module in found if isinstance(module, SimAM)]


def _run(model: nn.Module, example: Example, *, training: bool) -> Any:
    """One forward from the same random state and the same buffers as every other."""
    with mode(model, training), same_buffers(model):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(SEED)
        return example.given_to(model)


def _run_watched(
    model: nn.Module, example: Example, watched: Sequence[nn.Module]
) -> tuple[Any, dict[int, list[tuple[int, ...]]]]:
    """The output, and the shapes that each watched module returned, by `id(module)`."""
    ran: dict[int, list[tuple[int, ...]]] = {id(module): [] for module in watched}

    def note(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        ran[id(module)].append(tuple(output.shape) if isinstance(output, torch.Tensor) else ())

    handles = [module.register_forward_hook(note) for module in watched]
    try:
        return _run(model, example, training=False), ran
    finally:
        for handle in handles:
            handle.remove()


def _as_planned(edits: list[_Edited]) -> Check:
    name = "every SimAM is the one planned"
    for path, holder, edit in edits:
        attention, where = holder._modules.get(edit.child), join(path, edit.value)
        if not isinstance(attention, SimAM):
            return Check(name, False, f"{where} has a {type(attention).__name__} in the place of SimAM")
        if attention.bypassed:
            return Check(name, False, f"{where} is bypassed")
        found, wanted = (attention.e_lambda, attention.channel_dim), (edit.e_lambda, edit.channel_dim)
        if found != wanted:
            return Check(name, False, f"{where} has e_lambda {found[0]:g}, channel_dim {found[1]}; planned {wanted}")
    return Check(name, True, f"{len(edits)} of {len(edits)}")


def _same_tensors(model: nn.Module, keys: list[str], parameters: list[int], is_unwritten: bool) -> Check:
    name = "state_dict keys and parameters unchanged"
    now = list(model.state_dict())
    if now != keys:
        changed = sorted(set(now) ^ set(keys))
        return Check(name, False, f"keys differ: {', '.join(changed[:3])}")
    if [id(parameter) for parameter in model.parameters()] != parameters:
        return Check(name, False, "other parameters than before")
    if not is_unwritten:
        return Check(name, False, "a parameter or buffer was replaced or written to")
    return Check(name, True, f"{len(keys)} keys")


def _bypassed(model: nn.Module, example: Example, plain: Any) -> Check:
    with bypassed(attentions(model)):
        return _compare("bypassed: equal to the original in eval mode", _run(model, example, training=False), plain)


def _bypassed_in_training(model: nn.Module, example: Example) -> Check:
    name = "bypassed: equal to the original in train mode"
    failure = ""
    for batch in (example.repeated(2), example):
        try:
            with stock(model):
                plain = _run(model, batch, training=True)
            break
        except Exception as error:  # BatchNorm on one value, a detector without targets, ...
            failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    else:
        return Check(name, None, f"the original does not run in train mode on this example ({failure:.120})")
    with bypassed(attentions(model)):
        return _compare(name, _run(model, batch, training=True), plain)


def _compare(name: str, ours: Any, theirs: Any, sites: str = "") -> Check:
    """Equal bit for bit, or how they differ; not run where there is nothing to compare."""
    found = difference(ours, theirs)
    if found is None and not any(True for _ in tensors_in(theirs)):
        return Check(name, None, f"the output, a {type(theirs).__name__}, holds no tensors to compare")
    return Check(name, found is None, found or f"bit for bit{sites}")


def _ran_as_planned(edits: list[_Edited], ran: dict[int, list[tuple[int, ...]]]) -> Check:
    name = "every SimAM ran, on the planned shape"
    idle = [join(path, edit.value) for path, holder, edit in edits if not ran[id(holder)]]
    if len(idle) == len(edits):
        return Check(name, False, f"{idle[0]} never ran")
    for path, holder, edit in edits:
        if not ran[id(holder)]:  # a head for training alone
            continue
        shapes = ran[id(getattr(holder, edit.child))]
        where = join(path, edit.value)
        if not shapes:
            return Check(name, False, f"{where} never ran")
        if len(shapes) != len(ran[id(holder)]):
            calls = len(ran[id(holder)])
            return Check(name, False, f"{where} ran {len(shapes)} times in {calls} call(s) of {path or 'the model'}")
        channels = {shape[edit.channel_dim] for shape in shapes}
        if edit.shape[edit.channel_dim] not in channels or len(shapes[0]) != len(edit.shape):
            return Check(name, False, f"{where} ran on {shapes[0]}, planned {edit.shape}")
    left_out = f"; the example does not reach {', '.join(idle[:3])}" if idle else ""
    return Check(name, True, f"{len(edits) - len(idle)} of {len(edits)}{left_out}")


def _finite(plain: Any, live: Any) -> Check:
    name = "finite output"
    if not any(tensor.is_floating_point() for tensor in tensors_in(live)):
        return Check(name, None, f"the output, a {type(live).__name__}, holds no floating point tensors")
    if not all_finite(plain):
        return Check(name, None, "the original's output on this example is not finite either")
    return Check(name, all_finite(live), "" if all_finite(live) else "NaN or infinity with SimAM on")


def _against_hooks(model: nn.Module, example: Example, edits: list[_Edited], returned: dict[int, nn.Module]) -> Check:
    """Forward hooks on the stock model do what the rewrite does, where a site is what a module returns.

    Args:
        returned: module whose every call's result an edit attends, by position of the edit in `edits`.
    """
    name = "equal to forward hooks on the original"
    if not returned:
        is_scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
        aside = " (a scripted one takes no hooks)" if is_scripted else ""
        return Check(name, None, f"no site is what a module returns{aside}")
    with bypassed([getattr(holder, edit.child) for i, (_, holder, edit) in enumerate(edits) if i not in returned]):
        ours = _run(model, example, training=False)
    with stock(model):
        handles = [_attend(module, edits[i][2]) for i, module in returned.items()]
        try:
            theirs = _run(model, example, training=False)
        finally:
            for handle in handles:
                handle.remove()
    return _compare(name, ours, theirs, f", {len(returned)} of {len(edits)} sites")


def _module_values(model: nn.Module, edits: list[_Edited]) -> dict[int, nn.Module]:
    """The modules whose result is the attended value, by position of the edit; scripted ones take no hooks."""
    modules = dict(model.named_modules())
    found = {}
    for index, (path, _, edit) in enumerate(edits):
        module = modules.get(join(path, edit.value))
        if module is not None and not isinstance(module, torch.jit.ScriptModule) and edit.position == "after":
            found[index] = module
    return found


def _attend(module: nn.Module, edit: Edit) -> RemovableHandle:
    """A hook where the edit is: a boundary attends what forward returns, before the user's own hooks see it.

    An edit of the caller attends what the call returns, after them.
    """

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return simam(output, edit.e_lambda, channel_dim=edit.channel_dim)

    return module.register_forward_hook(hook, prepend=not edit.value)
