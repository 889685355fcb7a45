"""One model on the table: traced once, planned, prepared, and changed all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from simam_inject.discovery.flow import Flow
from simam_inject.discovery.records import Anatomy
from simam_inject.discovery.sites import discover
from simam_inject.errors import ModelError
from simam_inject.integrations import host_of, network_of
from simam_inject.matching import match
from simam_inject.planning.plan import Plan
from simam_inject.planning.planner import decide
from simam_inject.planning.records import PRESENT, Insertion, Skip
from simam_inject.recipe import load_recipe
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


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One traced model and the way to change it."""

    model: nn.Module
    trace: Trace
    flow: Flow
    present: tuple[Insertion, ...] = ()
    """What is in the model and stays in it."""
    prepared: dict[tuple[Insertion, ...], Preparation] = field(default_factory=dict)
    taken: list[tuple[Taken, ...]] = field(default_factory=list)
    """What each `make` took out, the last one last."""

    def apply(self, planned: Plan) -> nn.Module:
        """Carry the plan out, if the model is still the one that was planned; returns the object that was handed in."""
        network = self.trace.model
        if injected(network) != planned.present or not self._is_as_traced():
            raise ModelError("the model has changed since it was planned; plan again")
        if planned.insertions:
            earlier = recipes_of(network)
            self.make((*planned.present, *planned.insertions))
            set_recipes(network, (*earlier, planned.recipe.to_dict()))
        host = host_of(self.model)
        if host is not None:
            host.remember(self.model, planned)
        return self.model

    def prepare(self, insertions: tuple[Insertion, ...]) -> Preparation:
        """Work the rewrite out; the one that the plan was made from is kept."""
        if insertions not in self.prepared:
            with stock(self.trace.model), watchable():
                self.prepared[insertions] = prepare_all(self.trace, self.flow, insertions, self.present)
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
            put_back(taken, prepared.kept)
        except BaseException:
            put_back(taken)
            raise
        self.taken.append(taken)

    def _is_as_traced(self) -> bool:
        """The same module objects at the same paths."""
        with stock(self.trace.model):
            found = {id(module): path for path, module in self.trace.model.named_modules()}
        return found == self.trace.path_of


def no_effect(planned: Plan) -> str:
    """Why a recipe has no effect at all."""
    name = planned.recipe.name or "the recipe"
    refused = [skip for skip in planned.skips if skip.hit and skip.reason != PRESENT]
    head = f"{name} takes no site in this model: all its rules are optional, and none finds what it names"
    if refused:
        head = f"{name} changes nothing in this model: all the sites that it takes are skipped"
    near = [f"  {skip.path or '(model)'}: {skip.reason}" for skip in (refused or planned.skips)[:3]]
    return "\n".join([f"{head}. Among what was left out:", *near] if near else [head])


def make_plan(model: nn.Module, recipe: Any, example_inputs: Any) -> tuple[Plan, Operation]:
    """The plan, and the way to carry it out. Touches nothing."""
    resolved = load_recipe(recipe)
    network = network_of(model)
    check_subject(network)
    present = injected(model)
    trace, flow, anatomy = traced(network, example_inputs)
    operation = Operation(model, trace, flow, present)
    matches = match(resolved, anatomy)
    skips, prepared = settled(lambda refused: decide(resolved, anatomy, matches, present, refused), operation, present)
    planned = Plan(resolved, prepared.insertions[len(present) :], skips, anatomy, present, operation.apply)
    return planned, operation


def settled(
    choose: Callable[[dict[tuple[str, str | None], str]], tuple[tuple[Insertion, ...], tuple[Skip, ...]]],
    operation: Operation,
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


def traced(network: nn.Module, example_inputs: Any) -> tuple[Trace, Flow, Anatomy]:
    """The network as if nothing had been injected: its trace, its dataflow, its sites."""
    with stock(network):
        trace = trace_model(network, example_of(network, example_inputs))
        flow = Flow(trace)
        return trace, flow, discover(trace, flow)
