"""The checks. Every forward runs on a twin, so the model and its buffers do not change.

At the example's size in eval mode, the original runs once, and once the injected model, whose SimAMs run while the
network goes on with what they are given. The rest are pairs of injected and original at another
size, small if possible, in both modes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.example import Example
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.survey import cannot_run
from simam_inject.dataflow.twin import modules_with_python_forward
from simam_inject.editing.attach import Attended, attended_in
from simam_inject.editing.hooks import NoValueError
from simam_inject.errors import describe_exception
from simam_inject.planning.records import Check, Rewritten, Verification
from simam_inject.verification.formula import Call, why_not_bypassed
from simam_inject.verification.oracle import Oracle
from simam_inject.verification.pair import Calls, Pair, calls_of, check_outputs
from simam_inject.verification.runs import SEED, Marks, Twins
from simam_inject.verification.unchanged import as_planned, same_tensors

SAME_WAY = "the example forward runs the modules that were recorded"
_BYPASSED = "bypassed: equal to the original"
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
        before: `tensor_marks` from before the injection, where they are known.
        recorded: paths of the modules that ran when the model was planned on this example.
    """
    sites = list(attended_in(model))
    planned = as_planned(model, sites)
    if planned.ok is False:
        return Verification((planned,))
    with torch.inference_mode(False), same_surroundings(model):
        return Verification((planned, *_Checks(model, sites, example).all(before, recorded)))


class _Checks:
    def __init__(self, model: nn.Module, sites: list[Attended], example: Example) -> None:
        self.model = model
        self.sites = sites
        self.example = example
        self.oracle = Oracle(sites)
        self.twins = Twins(model)
        is_large = sum(tensor.numel() for tensor in example.tensors) > _LARGE
        larger = () if is_large else (example.with_size(),)
        sizes = [given for given in (*map(example.shrunk, _SMALL), *larger) if given is not None]
        self.examples = [(given.with_batch(1) or given, "another input size") for given in sizes]
        both = (example, example.with_batch(1)) if is_large else (example.with_batch(1), example)
        same_size = [given for given in both if given is not None]
        self.examples += [(given, "the example's size") for given in same_size]
        """Examples that pairs are tried with, in this order; those that the original does not take are removed."""
        self.failure = ""
        """Why the original did not take the last of them."""

    def all(self, before: Marks | None, recorded: set[str] | None) -> list[Check]:
        """Every check that runs the model, and that of its tensors."""
        stock = self.twins.stock()
        tensors = same_tensors(self.model, self.sites, list(stock.state_dict()), before)
        plain, ran = self._plain(stock)
        if recorded is not None and ran != recorded:
            first = min(ran ^ recorded)
            does = ("runs", "did not") if first in ran else ("does not run", "did")
            return [tensors, Check(SAME_WAY, False, f"{first} {does[0]}, and {does[1]} while the model was recorded")]
        pair = self._pair(training=False)
        size = self.examples[0][1] if pair else "the example's size"
        name = f"equal to the formula in hooks on the original, at {size}"
        other = pair.check(name) if pair else Check(name, None, f"the model does not run there: {self.failure:.150}")
        return [tensors, *self._at_the_size_of_the_example(plain), other, *self._in_train_mode()]

    def _plain(self, stock: nn.Module) -> tuple[Any, set[str]]:
        """Output of the original, and the paths of the modules that run."""
        ran: set[str] = set()
        path_of = {id(module): path for path, module in modules_with_python_forward(stock)}

        def enter(module: nn.Module, _args: Any) -> None:
            if id(module) in path_of:  # and no copy that a forward makes
                ran.add(path_of[id(module)])

        for _, module in modules_with_python_forward(stock):
            module.register_forward_pre_hook(enter)
        try:
            with self.oracle.attending(stock, self.oracle.note_shape):
                return self.twins.run(stock, self.example), ran
        except Exception as error:
            raise cannot_run(self.model, self.example, error) from error

    def _at_the_size_of_the_example(self, plain: Any) -> list[Check]:
        names = f"{_BYPASSED} in eval mode", "every SimAM ran, on the planned shape, with a finite result"
        twin = self.twins.injected()
        with calls_of(twin, [entry.site.module for entry in self.sites], is_large=True) as calls:
            output = self.twins.run(twin, self.example)
        check = check_outputs(names[0], output, plain)
        if check.ok is False:  # `nn.MultiheadAttention` computes in another way where there are hooks, within rounding
            check = check_outputs(names[0], output, self.twins.run(self.twins.stock(), self.example))
        idle = [entry.site.path for entry in self.sites if entry.site.module not in self.oracle.shapes]
        if len(idle) == len(self.sites):
            return [check, Check(names[1], False, f"{idle[0]} never ran")]
        found = f"{len(self.sites) - len(idle)} of {len(self.sites)}"
        found += f"; the example does not reach {', '.join(idle[:3])}" if idle else ""
        problems = (self._why_not_live(entry, calls.get(entry.site.module, [])) for entry in self.sites)
        return [_unless(self._bypass_problems(calls), check), _unless(problems, Check(names[1], True, found))]

    def _why_not_live(self, entry: Attended, calls: list[Call]) -> str | None:
        path, dim, planned = entry.site.path, entry.site.channel_dim, entry.site.shape
        expected = len(self.oracle.shapes.get(entry.site.module, []))
        if len(calls) != expected:
            return f"{path} ran {len(calls)} times instead of {expected}" if calls else f"{path} never ran"
        if calls and (len(calls[0].shape) != len(planned) or planned[dim] not in {call.shape[dim] for call in calls}):
            return f"{path} ran on {tuple(calls[0].shape)}, planned {tuple(planned)}"
        return next(filter(None, (self.oracle.why_not_formula(entry, call) for call in calls)), None)

    def _bypass_problems(self, calls: Calls) -> Iterable[str | None]:
        return (why_not_bypassed(entry, call) for entry in self.sites for call in calls.get(entry.site.module, [])[:1])

    def _in_train_mode(self) -> list[Check]:
        names = f"{_BYPASSED} in train mode", "equal to the formula in train mode, gradients included"
        pair = self._pair(training=True)
        if pair is None:  # a detector without targets, or SimAM on an output that it has in eval mode only
            reason = f"the model does not run in train mode on this example ({self.failure:.150})"
            return [Check(name, None, reason) for name in names]
        values = pair.check(names[1])
        # What a SimAM returns is all that differs: the rest of both networks has computed the same.
        bypassed = _unless(self._bypass_problems(pair.calls), Check(names[0], values.ok or None, values.detail))
        if values.ok:
            values = _unless([self._why_idle(pair), pair.why_no_gradient()], values)
        return [bypassed, values]

    def _pair(self, *, training: bool) -> Pair | None:
        """A forward of the injected model and one of the original, with the first example that the original takes."""
        while self.examples:
            try:
                pair = self._run_pair(training)
                return self._run_pair(training) if self.oracle.has_left_out() else pair
            except Exception as error:  # also batch norm on one value
                self.failure = describe_exception(error)
                del self.examples[0]
        return None

    def _run_pair(self, training: bool) -> Pair:
        example, live = self.examples[0][0], self.twins.injected()
        try:
            with calls_of(live, self.oracle.unnamed) as calls:
                output = self.twins.run(live, example, training=training, gradients=training)
        except Exception as error:
            stock = self.twins.stock()
            self.twins.run(stock, example, training=training, gradients=training)  # raises, unless SimAM is the cause
            if training and isinstance(error, NoValueError):
                raise
            return Pair(self.oracle, {}, None, f"raises where the original does not: {describe_exception(error):.150}")
        pair = Pair(self.oracle, calls, output)
        stock = self.twins.stock()
        with self.oracle.attending(stock, pair.attend):
            pair.expected = self.twins.run(stock, example, training=training, gradients=training)
        return pair

    def _why_idle(self, pair: Pair) -> str | None:
        """A SimAM inside a forward that computes other values in train mode, and among them not this one."""
        rewritten = [entry for entry in self.sites if isinstance(entry.site.edit, Rewritten)]
        inside = {entry.site.module: entry.site.path for entry in rewritten if entry.site.module in self.oracle.unnamed}
        idle = inside.keys() - pair.calls.keys()
        for seed in range(SEED + 1, SEED + 1 + _CHANCES) if idle else ():
            with calls_of(live := self.twins.injected()) as calls:
                self.twins.run(live, self.examples[0][0], training=True, seed=seed)
            idle -= calls.keys()
        return f"{inside[min(idle)]} never ran: in train mode its forward computes something else" if idle else None


def _unless(problems: Iterable[str | None], check: Check) -> Check:
    """The check, failed with the first problem if there is one."""
    problem = next(filter(None, problems), None)
    return Check(check.name, False, problem) if problem else check
