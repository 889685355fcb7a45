"""The facade: the one module that knows all stages.

recipe -> trace -> discover -> match -> plan -> rewrite -> verify
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

import simam_inject.rewriting.restoring  # noqa: F401 - tells torch which globals a restricted load may call
from simam_inject.discovery.flow import Flow
from simam_inject.discovery.records import Anatomy
from simam_inject.discovery.sites import discover
from simam_inject.errors import ModelError, NoMatchError, VerificationError
from simam_inject.integrations import host_of, network_of
from simam_inject.matching import Hit, match
from simam_inject.planning.plan import Plan
from simam_inject.planning.planner import decide, settle
from simam_inject.planning.records import Insertion, Skip, Verification
from simam_inject.recipe import load_recipe
from simam_inject.rewriting.differences import forward_difference
from simam_inject.rewriting.provenance import forget_recipes, recipes_of, set_recipes
from simam_inject.rewriting.rewriter import (
    Preparation,
    Taken,
    edits_in,
    insertion_of,
    operate,
    prepare_all,
    put_back,
    stock,
    take_out,
)
from simam_inject.subjects import check_subject
from simam_inject.tracing.inputs import example_of
from simam_inject.tracing.scopes import Trace, trace_model
from simam_inject.tracing.watching import watchable
from simam_inject.verification.verifier import attentions, bypassed, check_model, tensor_marks


def inject(model: nn.Module, recipe: Any, *, example_inputs: Any = None, verify: bool = True) -> nn.Module:
    """Put SimAM where the recipe says. Changes the model in place, all or nothing, and returns the same object.

    Args:
        model: any `nn.Module`, or an ultralytics `YOLO`.
        recipe: a `Recipe`, a dict, the name of a shipped recipe, a path to a YAML file, or a one-line selector
            ("after bottleneck.conv2").
        example_inputs: a tensor, a tuple (positional) or a dict (keywords) for one forward; None uses the input size
            that the model declares, else 1 x 3 x 224 x 224.
        verify: check afterwards that nothing else changed and every SimAM is live; see `verify`.

    Raises:
        RecipeError: the recipe is not valid.
        ModelError: the model cannot be run on the example, or not be edited as it is.
        NoMatchError: a rule takes no site.
        VerificationError: a check failed; the model is as it was.

    Example:
        >>> import torchvision
        >>> model = inject(torchvision.models.resnet18(), "after basicblock.conv2", verify=False)
        >>> len(injected(model))
        8
    """
    planned, operation = _plan(model, recipe, example_inputs)
    if not planned.insertions and not planned.present:
        raise NoMatchError(_no_effect(planned))
    if not planned.insertions and not planned.present:
        raise NoMatchError(_no_effect(planned))
    if not planned.insertions:
        warnings.warn(f"nothing to inject: all {len(planned.present)} sites have SimAM already", stacklevel=2)
        return model
    marks = tensor_marks(operation.trace.model)
    planned.apply()
    if verify:
        try:
            found = check_model(operation.trace.model, operation.trace.example, marks)
        except BaseException:
            operation.go_back(planned)
            raise
        if not found.ok:
            operation.go_back(planned)
            failed = "; ".join(f"{check.name}: {check.detail}" for check in found.checks if check.ok is False)
            raise VerificationError(f"verification failed, the model is as it was. {failed}")
    return model


def plan(model: nn.Module, recipe: Any, *, example_inputs: Any = None) -> Plan:
    """Work out what `inject` would do, and touch nothing: modes, buffers, random state and gradients stay as found.

    Args and Raises: as for `inject`, verification aside.
    """
    return _plan(model, recipe, example_inputs)[0]


def survey(model: nn.Module, *, example_inputs: Any = None) -> Anatomy:
    """Everything that a rule can name in the model, as if nothing had been injected. Touches nothing.

    Args and Raises: as for `plan`, recipes aside.
    """
    network = network_of(model)
    check_subject(network)
    return _trace(network, example_inputs)[2]


def injected(model: nn.Module) -> tuple[Insertion, ...]:
    """What is in the model now, in module order; empty for a model without SimAM."""
    return tuple(insertion_of(path, edit) for path, _, edit in edits_in(network_of(model)))


def eject(model: nn.Module) -> nn.Module:
    """Take every SimAM out again: the original classes and children, bit for bit. In place; returns the same object."""
    network = network_of(model)
    take_out(network)
    forget_recipes(network)
    host = host_of(model)
    if host is not None:
        host.forget(model)
    return model


def replay(model: nn.Module, sites: Iterable[Insertion], *, example_inputs: Any = None) -> nn.Module:
    """Make `injected(model)` these sites, as an earlier plan chose them; no recipe is asked. In place, all or nothing.

    Args:
        sites: of each, only path, position, reader, e_lambda and rule count; shapes are found anew. None: `eject`.

    Raises:
        ModelError: the model has no such site, or it cannot be attended; the message names it.
    """
    network = network_of(model)
    check_subject(network)
    hits = tuple(Hit(site.path, site.position, site.reader, site.rule, site.e_lambda) for site in sites)
    trace, flow, anatomy = _trace(network, example_inputs)
    operation = _Operation(model, trace, flow)
    unknown = [path for hit in hits for path in (hit.path, hit.reader or hit.path) if path not in anatomy.site_by_path]
    if unknown:
        raise ModelError(f"{type(network).__name__} has no site {unknown[0]!r}, where a recorded SimAM belongs")
    skips, prepared = _settled(lambda refused: settle(anatomy, hits, refused=refused)[:2], operation)
    if skips:
        raise ModelError(f"a recorded SimAM cannot be put back: {skips[0].path} {skips[0].reason}")
    operation.make(prepared.insertions)
    return model


@contextmanager
def bypass(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every SimAM returns its input unchanged; afterwards each is as it was."""
    with bypassed(attentions(network_of(model))):
        yield model


def verify(model: nn.Module, *, example_inputs: Any = None) -> Verification:
    """Check an injected model against itself without SimAM. Changes nothing; can be asked at any time.

    The checks: bypassed, it equals the original bit for bit in eval and in train mode; every SimAM ran, on the planned
    shape; state_dict keys and parameters are the same; the output is finite, and equal to forward hooks on the original
    wherever a site is what a module returns. A check that the model does not allow has `ok=None` and says why.

    Args:
        example_inputs: as for `inject`.

    Raises:
        ModelError: there is no SimAM in the model, or it raises on the example.
    """
    network = network_of(model)
    if not injected(network):
        raise ModelError("there is no SimAM in this model; inject(model, recipe) puts it there")
    return check_model(network, example_of(network, example_inputs))


@dataclass(frozen=True, slots=True, eq=False)
class _Operation:
    """One traced model and the way to change it."""

    model: nn.Module
    trace: Trace
    flow: Flow
    prepared: dict[tuple[Insertion, ...], Preparation] = field(default_factory=dict)
    taken: list[tuple[Taken, ...]] = field(default_factory=list)
    """What each `make` took out, the last one last."""

    def apply(self, planned: Plan) -> nn.Module:
        network = self.trace.model
        if injected(network) != planned.present or not self._is_as_traced():
            raise ModelError("the model has changed since it was planned; plan again")
        if planned.insertions:
            self.make((*planned.present, *planned.insertions))
            set_recipes(network, (*recipes_of(network), planned.recipe.to_dict()))
        host = host_of(self.model)
        if host is not None:
            host.remember(self.model, planned)
        return self.model

    def prepare(self, insertions: tuple[Insertion, ...]) -> Preparation:
        """Work the rewrite out; the one that the plan was made from is kept."""
        if insertions not in self.prepared:
            with stock(self.trace.model), watchable():
                self.prepared[insertions] = prepare_all(self.trace, self.flow, insertions)
        return self.prepared[insertions]

    def go_back(self, planned: Plan) -> None:
        """Undo `apply`."""
        earlier = recipes_of(self.trace.model)[:-1]
        eject(self.model)
        put_back(self.taken.pop())
        set_recipes(self.trace.model, earlier)
        host = host_of(self.model)
        if host is not None and planned.present:
            host.remember(self.model, replace(planned, insertions=()))

    def make(self, wanted: tuple[Insertion, ...]) -> None:
        """From the insertions that are there to those that are wanted, or not at all."""
        prepared = self.prepare(wanted)
        taken = take_out(self.trace.model)
        try:
            operate(prepared.operations)
        except BaseException:
            put_back(taken)
            raise
        self.taken.append(taken)

    def _is_as_traced(self) -> bool:
        """The same module objects at the same paths."""
        with stock(self.trace.model):
            found = {id(module): path for path, module in self.trace.model.named_modules()}
        return found == self.trace.path_of


def _no_effect(planned: Plan) -> str:
    """Why a recipe of optional rules has no effect at all."""
    name = planned.recipe.name or "the recipe"
    near = [f"  {skip.path or '(model)'}: {skip.reason}" for skip in planned.skips[:3]]
    head = f"{name} takes no site in this model: all its rules are optional, and none finds what it names"
    return "\n".join([f"{head}. Among what was left out:", *near] if near else [head])


def _no_effect(planned: Plan) -> str:
    """Why a recipe of optional rules has no effect at all."""
    name = planned.recipe.name or "the recipe"
    near = [f"  {skip.path or '(model)'}: {skip.reason}" for skip in planned.skips[:3]]
    head = f"{name} takes no site in this model: all its rules are optional, and none finds what it names"
    return "\n".join([f"{head}. Among what was left out:", *near] if near else [head])


def _plan(model: nn.Module, recipe: Any, example_inputs: Any) -> tuple[Plan, _Operation]:
    resolved = load_recipe(recipe)
    network = network_of(model)
    check_subject(network)
    present = injected(model)
    trace, flow, anatomy = _trace(network, example_inputs)
    operation = _Operation(model, trace, flow)
    matches = match(resolved, anatomy)
    skips, prepared = _settled(lambda refused: decide(resolved, anatomy, matches, present, refused), operation, present)
    planned = Plan(resolved, prepared.insertions[len(present) :], skips, anatomy, present, operation.apply)
    return planned, operation


def _settled(
    choose: Callable[[dict[tuple[str, str | None], str]], tuple[tuple[Insertion, ...], tuple[Skip, ...]]],
    operation: _Operation,
    present: tuple[Insertion, ...] = (),
) -> tuple[tuple[Skip, ...], Preparation]:
    """Choose until the modules can hold the choice: what one refuses is wrapped instead, or skipped."""
    refused: dict[tuple[str, str | None], str] = {}
    while True:
        insertions, skips = choose(refused)
        prepared = operation.prepare((*present, *insertions))
        if not prepared.refused.keys() - refused.keys():
            break
        refused |= prepared.refused
    for (path, _), reason in prepared.refused.items():
        raise ModelError(f"{path} can be attended neither inside its block nor by wrapping it: {reason}")
    operation.prepared[prepared.insertions] = prepared
    return skips, prepared


def _trace(network: nn.Module, example_inputs: Any) -> tuple[Trace, Flow, Anatomy]:
    with stock(network):
        trace = trace_model(network, example_of(network, example_inputs))
        flow = Flow(trace)
        return trace, flow, discover(trace, flow)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a recipe does to a model, for people to read."""

    plan: Plan
    differences: dict[str, str]
    """By path of a rewritten module: its generated forward as a diff against the traced one."""


def explain(model: nn.Module, recipe: Any, *, example_inputs: Any = None) -> Explanation:
    """The plan, and what the forward of every module concerned would become. Touches nothing.

    Args and Raises: as for `plan`.
    """
    planned, operation = _plan(model, recipe, example_inputs)
    trace = operation.trace
    differences = {}
    with stock(trace.model):
        for prepared in operation.prepare((*planned.present, *planned.insertions)).operations:
            module = prepared.module
            call = trace.calls[id(module)][0]
            differences[trace.path_of[id(module)]] = forward_difference(module, call, prepared)
    return Explanation(planned, differences)
