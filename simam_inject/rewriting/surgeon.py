"""One module's operation: from its edits to the class it gets, without touching it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import fx, nn

from simam_inject.errors import ModelError
from simam_inject.rewriting.classes import stock_class, swapped_class
from simam_inject.rewriting.code import Source, body_source, boundary_source, dispatch_source, refusal_source
from simam_inject.rewriting.graphs import Lost, Role, fingerprint, insert
from simam_inject.rewriting.methods import alternatives, lists_children, mentions, parts, record_parts
from simam_inject.rewriting.records import Edit, Specification
from simam_inject.tracing.inputs import Example
from simam_inject.tracing.proxies import Refusal
from simam_inject.tracing.recording import Call, record
from simam_inject.tracing.scopes import active_method
from simam_inject.tracing.tracer import Body, trace
from simam_inject.tracing.values import describe, leaves


@dataclass(frozen=True, slots=True)
class Operation:
    """What will be done to one module: its new class, its SimAM children, its specification."""

    module: nn.Module
    swapped: type[nn.Module]
    specification: Specification


def prepare(module: nn.Module, call: Call | None, edits: tuple[Edit, ...], body: Body | None = None) -> Operation:
    """Work out the class that `module` gets. Nothing is changed.

    Args:
        module: of its stock class.
        call: its recorded call; may be None where all edits are boundaries.
        edits: in the order of the plan; those with an empty `value` attend what the module returns.
        body: its active method as traced already from `call`, if it was.

    Raises:
        ModelError: the edits cannot be put into this module; the message says why.
    """
    inner, boundary = split(module, edits)
    sources: dict[str, Source] = {}
    fingerprints: list[tuple[str, str]] = []
    refused: dict[str, str] = {}
    arguments: Any = None
    if inner:
        if call is None:
            raise ModelError(f"{type(module).__name__} was not recorded, and must be traced")
        arguments = _describe_call(call)
        for name, outcome in _rewritten(module, call, inner, body):
            if isinstance(outcome, str):
                refused[name] = outcome
                sources[name] = refusal_source(name, outcome)
            else:
                written, traced = outcome
                sources.update({source.name: source for source in written})
                fingerprints.append((name, traced))
    if boundary is not None:
        for name in [active_method(module), *alternatives(module)]:
            if name not in refused:
                _wrap(module, name, boundary, sources)
    notes = [f"{name} is refused from now on: {why}" for name, why in refused.items()]
    noted = tuple(replace(edit, note="; ".join([edit.note, *notes] if edit.note else notes)) for edit in edits)
    specification = Specification(noted, arguments, tuple(sorted(fingerprints)))
    swapped = swapped_class(stock_class(module), tuple(sources.values()))
    return Operation(module, swapped, specification)


def split(module: nn.Module, edits: tuple[Edit, ...]) -> tuple[tuple[Edit, ...], Edit | None]:
    """The edits that are written into the forward, and the one that is wrapped around it.

    A forward that goes through its module's own children would run a SimAM that it finds among them. Written out, it
    names them one by one, and what it returns is then a value like any other.
    """
    boundary = next((edit for edit in edits if not edit.value), None)
    if boundary is None or lists_children(module, active_method(module)):
        return edits, None
    return tuple(edit for edit in edits if edit.value), boundary


def _wrap(module: nn.Module, name: str, boundary: Edit, sources: dict[str, Source]) -> None:
    inner = sources.pop(name, None)
    source = boundary_source(name, inner.compile() if inner else getattr(type(module), name), boundary.child)
    if inner is not None:  # one class for one body: what it names and does not show counts too
        source.text += "".join(f"# {line}\n" for line in inner.text.splitlines())
        source.objects = {**inner.objects, **source.objects}
    sources[name] = source


def _rewritten(
    module: nn.Module, call: Call, edits: tuple[Edit, ...], body: Body | None
) -> Iterator[tuple[str, tuple[list[Source], str] | str]]:
    """Every method to replace: (name, (its sources, fingerprint of the traced graph)), or (name, why it is refused)."""
    main = active_method(module)
    try:
        body = body or trace(module, call, main)
        yield main, _Writing(module, call, main, Role.WHOLE, edits, body.graph).write(body)
    except Refusal as refusal:
        raise ModelError(f"{type(module).__name__}.{main} {refusal}") from None
    except Lost as lost:
        raise ModelError(f"{type(module).__name__}.{main}: {lost}") from None
    returns = _results(body.graph)
    for name in alternatives(module):
        is_named = mentions(module, name, body.graph, edits) or lists_children(module, name)
        try:
            other = trace(module, call, name)
        except Refusal as refusal:
            if is_named or not all(edit.value for edit in edits):
                yield name, f"it {refusal}"
            continue
        role = Role.WHOLE if _results(other.graph) == returns else Role.OTHER
        try:
            written = _Writing(module, call, name, role, edits, body.graph).write(other)
        except Lost as lost:
            yield name, str(lost)
            continue
        if written[0]:
            yield name, written
    yield from _rewritten_parts(module, call, edits, body.graph)


def _rewritten_parts(
    module: nn.Module, call: Call, edits: tuple[Edit, ...], reference: fx.Graph
) -> Iterator[tuple[str, tuple[list[Source], str] | str]]:
    """The same for the methods that the active one calls. Written out it calls none of them, so none attends twice."""
    names = [name for name in parts(module) if mentions(module, name, reference, edits) or lists_children(module, name)]
    recorded = record_parts(module, call, names) if names else {}
    for name in names:
        calls = recorded[name]
        try:
            if len(calls) != 1:
                raise Lost(f"the forward runs it {len(calls)} times, and a site belongs to one run")
            body = trace(module, calls[0], name)
            written = _Writing(module, calls[0], name, Role.PART, edits, reference).write(body)
        except Refusal as refusal:
            yield name, f"it {refusal}"
            continue
        except Lost as lost:
            yield name, str(lost)
            continue
        if written[0]:
            yield name, written


@dataclass(frozen=True, slots=True)
class _Writing:
    """One method of one module, about to be written with the SimAM calls in it."""

    module: nn.Module
    call: Call
    name: str
    role: Role
    edits: tuple[Edit, ...]
    reference: fx.Graph

    def write(self, body: Body) -> tuple[list[Source], str]:
        """Sources of the method, in both modes where they differ, and the fingerprint of what was traced.

        Raises:
            Lost: the method cannot hold an edit that concerns it, in one of the modes.
        """
        module, name = self.module, self.name
        graph, held = insert(body.graph, self.edits, self.reference, self.role)
        if not held and not lists_children(module, name):
            return [], ""
        mark = fingerprint(body.graph)
        if not body.reads_training:
            return [body_source(name, body, graph, module)], mark
        training = self._trace_training()
        if _assumptions(training) == _assumptions(body):
            return [body_source(name, body, graph, module)], mark
        try:
            training_graph, also_held = insert(training.graph, self.edits, self.reference, self.role)
        except Lost as lost:
            raise Lost(f"in train mode {lost}") from None
        if also_held != held:
            raise Lost("in train mode it computes other attended values than in eval mode")
        evaluation_name, training_name = f"_simam_{name}_eval", f"_simam_{name}_train"
        return [
            body_source(evaluation_name, body, graph, module),
            body_source(training_name, training, training_graph, module),
            dispatch_source(name, body.arguments, training_name, evaluation_name),
        ], mark

    def _trace_training(self) -> Body:
        """Traced with what its children return in eval mode or, where that does not fit, in train mode."""
        try:
            return trace(self.module, self.call, self.name, training=True)
        except Refusal as refusal:
            if self.role is Role.PART:
                raise Lost(f"in train mode it {refusal}") from None
        try:
            recorded = record(self.module, Example(*self.call.given), training=True)
            return trace(self.module, recorded, self.name, training=True)
        except (Refusal, ModelError) as reason:
            raise Lost(f"in train mode it {reason}") from None


def _assumptions(body: Body) -> tuple[Any, ...]:
    """All that a generated forward is made of."""
    constants = [(a.name, a.is_proxied, None if a.is_proxied else a.value) for a in body.arguments]
    others = [getattr(body, part.name) for part in fields(body) if part.name not in ("graph", "arguments")]
    return fingerprint(body.graph), constants, others


def _results(graph: fx.Graph) -> list[Any]:
    """Shapes of what a graph returns."""
    output = next(reversed(graph.nodes))
    found: list[Any] = []

    def note(node: fx.Node) -> fx.Node:
        value = node.meta.get("value")
        found.extend(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in leaves(value))
        return node

    fx.map_arg(output.args, note)
    return found


def _describe_call(call: Call) -> Any:
    try:
        return describe(call.given)
    except TypeError:
        return None  # an argument that is no data: the model cannot be pickled, and says so then
