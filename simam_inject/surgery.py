"""The facade: the one module that knows all stages.

recipe -> trace -> discover -> match -> plan -> rewrite -> verify
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

import simam_inject.rewriting.restoring  # noqa: F401 - tells torch which globals a restricted load may call
from simam_inject.discovery.records import Anatomy
from simam_inject.errors import ModelError, NoMatchError, VerificationError
from simam_inject.integrations import network_of, refresh
from simam_inject.matching import Hit
from simam_inject.operation import Operation, eject, injected, make_plan, no_effect, settled, traced
from simam_inject.planning.plan import Plan
from simam_inject.planning.planner import settle
from simam_inject.planning.records import PRESENT, Insertion, Verification
from simam_inject.rewriting.differences import forward_difference
from simam_inject.rewriting.rewriter import stock
from simam_inject.subjects import check_subject
from simam_inject.tracing.inputs import example_of
from simam_inject.verification.verifier import attentions, bypassed, check_model, tensor_marks

__all__ = ["bypass", "eject", "explain", "inject", "injected", "plan", "replay", "survey", "verify"]


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
    planned, operation = make_plan(model, recipe, example_inputs)
    if planned.is_done:
        there = sum(skip.reason == PRESENT for skip in planned.skips)
        warnings.warn(f"nothing to inject: all {there} sites have SimAM already", stacklevel=2)
        return model
    if not planned.insertions:
        raise NoMatchError(no_effect(planned))
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
    return make_plan(model, recipe, example_inputs)[0]


def survey(model: nn.Module, *, example_inputs: Any = None) -> Anatomy:
    """Everything that a rule can name in the model, as if nothing had been injected. Touches nothing.

    Args and Raises: as for `plan`, recipes aside.
    """
    network = network_of(model)
    check_subject(network)
    return traced(network, example_inputs)[2]


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
    trace, flow, anatomy = traced(network, example_inputs)
    operation = Operation(model, trace, flow)
    unknown = [path for hit in hits for path in (hit.path, hit.reader or hit.path) if path not in anatomy.site_by_path]
    if unknown:
        raise ModelError(f"{type(network).__name__} has no site {unknown[0]!r}, where a recorded SimAM belongs")
    skips, prepared = settled(lambda refused: settle(anatomy, hits, refused=refused)[:2], operation)
    if skips:
        raise ModelError(f"a recorded SimAM cannot be put back: {skips[0].path} {skips[0].reason}")
    operation.make(prepared.insertions)
    refresh(model)
    return model


@contextmanager
def bypass(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every SimAM returns its input unchanged; afterwards each is as it was."""
    refresh(model)
    try:
        with bypassed(attentions(network_of(model))):
            yield model
    finally:
        refresh(model)


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
    planned, operation = make_plan(model, recipe, example_inputs)
    trace = operation.trace
    differences = {}
    with stock(trace.model):
        for prepared in operation.prepare((*planned.present, *planned.insertions)).operations:
            module = prepared.module
            call = trace.calls[id(module)][0]
            differences[trace.path_of[id(module)]] = forward_difference(module, call, prepared)
    return Explanation(planned, differences)
