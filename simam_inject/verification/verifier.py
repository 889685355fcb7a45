"""The checks: three pairs of forwards, of the injected model and of the original, each on a twin.

At the example's size in eval mode, every SimAM runs while both networks go on with what it is given. At another size,
small if possible, in eval and in train mode, they go on with what it returns.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode

from simam_inject.attention import SimAM
from simam_inject.dataflow.example import Example, example_like
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.survey import cannot_run
from simam_inject.dataflow.twin import set_mode, to_clone, twin_of
from simam_inject.editing.attach import Attended, attended_in, simams_in, strip
from simam_inject.editing.hooks import NoValueError
from simam_inject.editing.presence import presence_of
from simam_inject.errors import describe_exception, shortened
from simam_inject.verification.checks import (
    DISTURBED,
    EVAL_ONLY,
    Check,
    Marks,
    Verification,
    as_planned,
    same_tensors,
    unless,
)
from simam_inject.verification.oracle import Oracle
from simam_inject.verification.pair import Pair
from simam_inject.verification.random_numbers import DRAWING, random_states, set_seed

SAME_WAY = "the example forward runs the modules that were recorded"
_SEED = 0x51A4_0001
"""A seed that no forward would set by itself."""
_SMALL = (64, 128, 256)
"""Image sizes to try, in pixels: many networks take none below 64, and at 64 most maps still have several positions."""
_LARGE = 2**20
"""Elements of an example above which pairs do not enlarge it: the maps of all sites are in memory at once."""
_CHANCES = 8
"""Forwards that a SimAM has to run in one of: a branch may be dropped at random."""
_ATTEMPTS = 10
"""Times that a pair runs whose two forwards drew different random numbers, as other threads draw some meanwhile."""
_FAULTS = 2
"""Of these, those that drew equally many and differ: another thread may have drawn in both, at other moments."""
_OWN_SIZE = "the example's size"
_DIRECT = "never ran: the model calls {}.forward(...) itself, which runs no hooks"


def check_model(
    model: nn.Module, example: Example, before: Marks | None = None, *, recorded: set[str] | None = None
) -> Verification:
    """Run every check on an injected model, which is left as found; or a `ModelError` if the original raises.

    Known after an injection are `before`, its `tensor_marks` until then, and `recorded`, paths of the modules that ran
    when the model was planned on this example.
    """
    sites = list(attended_in(model))
    planned = as_planned(model, sites)
    if planned.ok is False:
        return Verification((planned,))
    cudnn: Any = torch.backends.cudnn
    with torch.inference_mode(False), same_surroundings(model):  # which restores the two settings
        cudnn.benchmark = False  # it would time algorithms for every size that is tried
        cudnn.deterministic = True  # transposed convolutions of two runs are not equal without it
        return Verification((planned, *_Checks(model, sites, example).all(before, recorded)))


class _Checks:
    def __init__(self, model: nn.Module, sites: list[Attended], example: Example) -> None:
        self.model, self.sites, self.example = model, sites, example
        self.oracle = Oracle(sites, model)
        is_large = sum(tensor.numel() for tensor in example.tensors) > _LARGE
        sizes = [*map(example.shrunk, _SMALL), None if is_large else example.with_size()]
        same = [example, example.with_batch(1)] if is_large else [example.with_batch(1), example]
        self.examples = [(given.with_batch(1) or given, "another input size") for given in sizes if given is not None]
        self.examples += [(given, _OWN_SIZE) for given in same if given is not None]
        """Examples that pairs are tried with, in this order; those that the original does not take are removed."""
        self.failure = ""
        """Why the original did not take the last of them."""
        self.has_no_value = False
        """It did, and the injected model has no value at a site."""
        self.drawn: list[object] = []
        """The random state after each forward of a pair."""

    def all(self, before: Marks | None, recorded: set[str] | None) -> list[Check]:
        """Every check that runs the model, and that of its tensors."""
        tensors = same_tensors(self.model, self.sites, list(self._original().state_dict()), before)
        first = Pair(self.oracle, partial(self._run, example=self.example), bypassed=True)
        try:
            error = self._run_both(first)
        except Exception as own:
            raise cannot_run(self.model, self.example, own) from own
        if recorded is not None and recorded != self.oracle.ran:
            paths = shortened(sorted(recorded ^ self.oracle.ran))
            return [tensors, Check(SAME_WAY, False, f"it ran only now, or only while the model was recorded: {paths}")]
        if error is not None:
            raise error
        bypassed = unless(first.not_bypassed, first.check_outputs("bypassed: equal to the original in eval mode"))
        return [tensors, bypassed, self._live(first), self._at_another_size(), *self._in_train_mode()]

    def _live(self, pair: Pair) -> Check:
        unreached = [entry.site for entry in self.sites if entry.site.module not in self.oracle.shapes]
        idle = [site.path for site in unreached]
        found = f"{len(self.sites) - len(idle)} of {len(self.sites)}"
        found += f"; the example does not reach {shortened(idle, 3)}" if idle else ""
        live = Check("every SimAM ran at the example's size, equal to the formula", True, found)
        if pair.is_disturbed:
            return Check(live.name, None, DISTURBED)
        direct = self._called_directly({site.edit.module for site in unreached})
        missed = [f"{site.path} {_DIRECT.format(site.edit.module)}" for site in unreached if site.edit.module in direct]
        nothing = [f"{path} never ran" for path in idle if len(idle) == len(self.sites)]
        return unless([*pair.problems.values(), *missed, *nothing], live)

    def _called_directly(self, paths: set[str]) -> set[str]:
        """Those of these modules that the example forward runs by their `forward` alone, as `conv.forward(x)`."""
        original, ran = self._original(), set[str]()
        modules = {id(original.get_submodule(path)): path for path in paths - self.oracle.ran}

        def watch(frame: FrameType, event: str, _argument: object) -> None:
            code = frame.f_code
            if event == "call" and code.co_name == "forward" and code.co_argcount:
                ran.add(modules.get(id(frame.f_locals.get(code.co_varnames[0])), ""))

        if modules and sys.getprofile() is None:  # a profiler of the user's cannot always be set again
            sys.setprofile(watch)  # of this thread
            try:
                self._run(original, example=self.example)
            finally:
                sys.setprofile(None)
        return ran & set(modules.values())

    def _at_another_size(self) -> Check:
        pair = self._pair(training=False)
        name = "equal to the formula in hooks on the original, at "
        if pair is None:
            return Check(f"{name}another input size", None, f"the model does not run there ({self.failure})")
        checked = pair.check(name + self.examples[0][1])
        idle = [entry.site.path for entry in self.sites if entry.site.module not in pair.calls]
        if checked.ok and idle:
            checked = Check(checked.name, bool(pair.calls) or None, f"this size does not reach {shortened(idle, 3)}")
        if self.oracle.changed() - pair.calls.keys():  # the forward computes a site at some sizes only
            self.examples = [entry for entry in self.examples if entry[1] == _OWN_SIZE]
        return checked

    def _in_train_mode(self) -> list[Check]:
        bypassed, formula = "bypassed: equal to the original", "equal to the formula in train mode, gradients included"
        idle, seed = set(self.oracle.scopes), _SEED
        while (pair := self._pair(training=True, seed=seed)) and not pair.problems and seed < _SEED + _CHANCES:
            idle &= self.oracle.changed() - pair.calls.keys()
            if not idle:
                break
            seed += 1
        if pair is not None and idle and not pair.problems:  # the forward may compute a site for this batch size only
            self.examples = [(self.example, _OWN_SIZE)]
            if exact := self._pair(training=True):
                pair = exact
                idle &= self.oracle.changed() - pair.calls.keys()
        if pair is None:  # a detector without targets, or SimAM on an output that it has in eval mode only
            reason = f"the model does not run in train mode on this example ({self.failure})"
            if self.has_no_value:
                reason = f"{EVAL_ONLY}, so its forward raises ({self.failure})"
            return [Check(name, None, reason) for name in (f"{bypassed} in train mode", formula)]
        values = pair.check(formula)
        if values.ok:
            words = "never ran: in train mode its forward computes something else"
            values = unless([f"{one.site.path} {words}" for one in self.sites if one.site.module in idle], values)
        # What a SimAM returns is all that differs: the rest of both networks has computed the same.
        return [unless(pair.not_bypassed, Check(f"{bypassed} in train mode", values.ok or None, values.detail)), values]

    def _pair(self, *, training: bool, seed: int = _SEED) -> Pair | None:
        """A forward of the injected model and one of the original, with the first example that the original takes."""
        while self.examples:
            forward = partial(self._run, example=self.examples[0][0], training=training, seed=seed)
            pair = Pair(self.oracle, forward, training=training)
            try:
                error = self._run_both(pair)
                does_not_exist = training and isinstance(error, NoValueError)
            except Exception as own:  # also batch norm on one value
                error, does_not_exist = own.with_traceback(None), True  # see `_run_both`
            self.failure = f"{describe_exception(error):.150}" if error else ""
            self.has_no_value = isinstance(error, NoValueError)
            if not does_not_exist:
                if error is not None:
                    pair.problems = {"": f"raises where the original does not: {self.failure}"}
                return pair
            del self.examples[0]
        return None

    def _run_both(self, pair: Pair) -> Exception | None:
        """The error that the injected model raises, and the original does not; raises what the original raises."""
        others = any(not isinstance(entry.attention, SimAM) for entry in self.sites)  # which may draw as well
        has_threads, faults = threading.active_count() > 1, 0
        for _ in range(_ATTEMPTS if has_threads else 1):
            with DRAWING:
                error = self._try_both(pair)
            is_equal = error is None and pair.is_equal()
            faults += not is_equal and all(state == self.drawn[0] for state in self.drawn)
            if is_equal or faults == _FAULTS:
                break
        pair.is_disturbed = not is_equal and (faults < _FAULTS if has_threads else others and not faults)
        return error

    def _try_both(self, pair: Pair) -> Exception | None:
        error, was_bypassed = None, pair.bypassed
        pair.restart()
        self.drawn.clear()
        try:
            pair.run_injected(self._injected())
        except Exception as raised:  # with torch 2.11, its frames would keep the hooks of a checkpointed region active
            error, pair.bypassed = raised.with_traceback(None), True
        pair.run_original(self._original())
        changed = self.oracle.changed() & pair.problems.keys()
        if changed and error is None:
            pair.run_original(self._original(), changed)
        pair.bypassed = was_bypassed
        return error

    # Twins, each for one forward

    def _injected(self) -> nn.Module:
        """The model with every SimAM at full strength."""
        twin = twin_of(self.model, to_clone)
        for _, attention in simams_in(twin):
            attention.strength = 1.0
        return twin

    def _original(self) -> nn.Module:
        """The model without SimAM."""
        twin = twin_of(self.model, to_clone)
        strip(twin)
        return twin

    def _run(self, twin: nn.Module, *, example: Example, training: bool = False, seed: int = _SEED) -> Any:
        """The output of one forward, from the same random state as every other of this seed."""
        set_mode(twin, training)
        set_seed(seed)
        # Under a mode, as the oracle's: torch's fast paths of attention compute otherwise, and are not taken then.
        with torch.set_grad_enabled(training), BaseTorchFunctionMode():
            output = example.run(twin)
        self.drawn.append(random_states())
        return output


def remembered_example(network: nn.Module) -> Example | None:
    """Random inputs of the shapes that `inject` was given; None if they are not known."""
    presence = presence_of(network)
    return None if presence is None or presence.example is None else example_like(network, presence.example)
