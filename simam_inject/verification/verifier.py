"""The checks: three pairs of forwards, of the injected model and of the original, each on a twin.

At the example's size in eval mode, every SimAM runs while both networks go on with what it is given. At another size,
small if possible, in eval and in train mode, they go on with what it returns.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from simam_inject.attention import SimAM
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.survey import cannot_run
from simam_inject.dataflow.twin import modules_with_python_forward, set_mode, to_clone, twin_of
from simam_inject.editing.attach import Attended, attended_in, strip
from simam_inject.editing.hooks import NoValueError
from simam_inject.errors import describe_exception, shortened
from simam_inject.planning.records import Check, Verification
from simam_inject.verification.oracle import Oracle
from simam_inject.verification.pair import Pair
from simam_inject.verification.unchanged import Marks, as_planned, same_tensors

SAME_WAY = "the example forward runs the modules that were recorded"
_SEED = 0x51A4_0001
"""A seed that no forward would set by itself."""
_SMALL = (64, 128, 256)
"""Image sizes to try, in pixels: many networks take none below 64, and at 64 most maps still have several positions."""
_LARGE = 2**20
"""Elements of an example above which pairs do not enlarge it: the maps of all sites are in memory at once."""
_CHANCES = 8
"""Forwards that a SimAM has to run in one of: a branch may be dropped at random."""


def check_model(
    model: nn.Module, example: Example, before: Marks | None = None, *, recorded: set[str] | None = None
) -> Verification:
    """Run every check on an injected model, which is left as found.

    Args:
        model: has SimAM.
        example: arguments of one forward.
        before: `tensor_marks` from before the injection, where they are known.
        recorded: paths of the modules that ran when the model was planned on this example.

    Raises:
        ModelError: the original raises on the example.
    """
    sites = list(attended_in(model))
    planned = as_planned(model, sites)
    if planned.ok is False:
        return Verification((planned,))
    with torch.inference_mode(False), same_surroundings(model):
        return Verification((planned, *_Checks(model, sites, example).all(before, recorded)))


class _Checks:
    def __init__(self, model: nn.Module, sites: list[Attended], example: Example) -> None:
        self.model, self.sites, self.example = model, sites, example
        self.oracle = Oracle(sites)
        self.parameters: dict[int, Tensor] = {}
        """One copy of each, which the twins share."""
        is_large = sum(tensor.numel() for tensor in example.tensors) > _LARGE
        sizes = [*map(example.shrunk, _SMALL), None if is_large else example.with_size()]
        same = [example, example.with_batch(1)] if is_large else [example.with_batch(1), example]
        self.examples = [(given.with_batch(1) or given, "another input size") for given in sizes if given is not None]
        self.examples += [(given, "the example's size") for given in same if given is not None]
        """Examples that pairs are tried with, in this order; those that the original does not take are removed."""
        self.failure = ""
        """Why the original did not take the last of them."""

    def all(self, before: Marks | None, recorded: set[str] | None) -> list[Check]:
        """Every check that runs the model, and that of its tensors."""
        tensors = same_tensors(self.model, self.sites, list(self._stock().state_dict()), before)
        first = Pair(self.oracle, partial(self._run, example=self.example), bypassed=True)
        ran = self._run_first(first)
        if recorded is not None and ran != recorded:
            path = min(ran ^ recorded)
            does = ("runs", "did not") if path in ran else ("does not run", "did")
            return [tensors, Check(SAME_WAY, False, f"{path} {does[0]}, and {does[1]} while the model was recorded")]
        bypassed = _unless(first.not_bypassed, first.check_outputs("bypassed: equal to the original in eval mode"))
        other = self._pair(training=False)
        name = f"equal to the formula in hooks on the original, at {(self.examples or [('', 'no size')])[0][1]}"
        changed = other.check(name) if other else Check(name, None, f"the model does not run there: {self.failure}")
        return [tensors, bypassed, self._live(first), changed, *self._in_train_mode()]

    def _run_first(self, pair: Pair) -> set[str]:
        """Run the pair at the size of the example; the paths of the modules that run in the original."""
        ran: set[str] = set()
        error = None
        try:
            pair.run_injected(self._injected())
        except Exception as raised:
            error = raised
        stock = self._stock()
        for path, module in modules_with_python_forward(stock):
            module.register_forward_pre_hook(partial(_note_path, ran, path, id(module)))
        try:
            pair.run_original(stock)
        except Exception as own:
            raise cannot_run(self.model, self.example, own) from own
        if error is not None:
            raise error
        return ran

    def _live(self, pair: Pair) -> Check:
        name = "every SimAM ran, on the planned shape, with a finite result"
        idle = [entry.site.path for entry in self.sites if entry.site.module not in self.oracle.shapes]
        found = f"{len(self.sites) - len(idle)} of {len(self.sites)}"
        found += f"; the example does not reach {shortened(idle, 3)}" if idle else ""
        nothing = [f"{idle[0]} never ran"] if len(idle) == len(self.sites) else []
        return _unless([*pair.problems.values()] or nothing, Check(name, True, found))

    def _in_train_mode(self) -> list[Check]:
        names = (
            "bypassed: equal to the original in train mode",
            "equal to the formula in train mode, gradients included",
        )
        idle = set(self.oracle.scopes)
        for seed in range(_SEED, _SEED + _CHANCES):
            pair = self._pair(training=True, seed=seed)
            if pair is None:  # a detector without targets, or SimAM on an output that it has in eval mode only
                reason = f"the model does not run in train mode on this example ({self.failure})"
                return [Check(name, None, reason) for name in names]
            idle &= self.oracle.changed() - pair.calls.keys()
            if pair.problems or not idle:
                break
        values = pair.check(names[1])
        if values.ok:
            words = "never ran: in train mode its forward computes something else"
            values = _unless([f"{e.site.path} {words}" for e in self.sites if e.site.module in idle], values)
        # What a SimAM returns is all that differs: the rest of both networks has computed the same.
        return [_unless(pair.not_bypassed, Check(names[0], values.ok or None, values.detail)), values]

    def _pair(self, *, training: bool, seed: int = _SEED) -> Pair | None:
        """A forward of the injected model and one of the original, with the first example that the original takes."""
        while self.examples:
            forward = partial(self._run, example=self.examples[0][0], training=training, seed=seed)
            pair = Pair(self.oracle, forward, training=training)
            try:
                if self._is_run(pair, forward):
                    return pair
            except Exception as error:  # of the original; also batch norm on one value
                self.failure = f"{describe_exception(error):.150}"
            del self.examples[0]
        return None

    def _is_run(self, pair: Pair, forward: partial[Any]) -> bool:
        """Run both; False if a site does not exist in train mode."""
        try:
            pair.run_injected(self._injected())
        except Exception as error:
            self.failure = f"{describe_exception(error):.150}"
            if pair.training and isinstance(error, NoValueError):
                return False
            forward(self._stock())
            pair.problems[""] = f"raises where the original does not: {self.failure}"
            return True
        pair.run_original(self._stock())
        if changed := self.oracle.changed() & pair.problems.keys():
            pair.run_original(self._stock(), changed)
        return True

    # Twins, each for one forward

    def _injected(self) -> nn.Module:
        """The model with every SimAM at full strength."""
        twin = twin_of(self.model, self._copy)
        for entry in attended_in(twin):
            if isinstance(entry.attention, SimAM):
                entry.attention.strength = 1.0
        return twin

    def _stock(self) -> nn.Module:
        """The model without SimAM."""
        twin = twin_of(self.model, self._copy)
        strip(twin)
        return twin

    def _copy(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return to_clone(tensor)
        if id(tensor) not in self.parameters:
            self.parameters[id(tensor)] = to_clone(tensor)
        return self.parameters[id(tensor)].detach()

    def _run(self, twin: nn.Module, *, example: Example, training: bool = False, seed: int = _SEED) -> Any:
        """The output of one forward, from the same random state as every other of this seed."""
        set_mode(twin, training)
        for set_seed in (torch.manual_seed, random.seed, np.random.seed):
            set_seed(seed)
        try:  # under a mode, as the oracle's: torch's fast paths of attention compute otherwise, and are not taken then
            with torch.set_grad_enabled(training), BaseTorchFunctionMode():
                return example.run(twin)
        finally:
            if any(copy._version for copy in self.parameters.values()):  # the forward wrote into them
                self.parameters.clear()


def _note_path(ran: set[str], path: str, identity: int, module: nn.Module, _args: Any) -> None:
    """Pre-hook of a module; a copy that a forward makes has the hook of the original."""
    if id(module) == identity:
        ran.add(path)


def _unless(problems: list[str], check: Check) -> Check:
    """The check, failed if there are problems."""
    return Check(check.name, False, shortened(problems, joint="; ")) if problems else check
