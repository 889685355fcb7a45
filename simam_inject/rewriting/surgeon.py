"""One module's operation: from its edits to the class it gets, without touching it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from simam_inject.errors import ModelError
from simam_inject.rewriting.classes import stock_class, swapped_class
from simam_inject.rewriting.code import Source, body_source, boundary_source, dispatch_source, refusal_source
from simam_inject.rewriting.graphs import Lost, fingerprint, insert
from simam_inject.rewriting.records import Edit, Specification
from simam_inject.tracing.proxies import Refusal
from simam_inject.tracing.recording import Call
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
    inner = tuple(edit for edit in edits if edit.value)
    boundary = next((edit for edit in edits if not edit.value), None)
    sources: dict[str, Source] = {}
    fingerprints: list[tuple[str, str]] = []
    refused: dict[str, str] = {}
    arguments: Any = None
    if inner:
        assert call is not None
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
        for name in [active_method(module), *(other for other in alternatives(module))]:
            if name not in refused:
                _wrap(module, name, boundary, sources)
    notes = [f"{name} is refused from now on: {why}" for name, why in refused.items()]
    noted = tuple(replace(edit, note="; ".join([edit.note, *notes] if edit.note else notes)) for edit in edits)
    specification = Specification(noted, arguments, tuple(sorted(fingerprints)))
    swapped = swapped_class(stock_class(module), tuple(sources.values()))
    return Operation(module, swapped, specification)


def _wrap(module: nn.Module, name: str, boundary: Edit, sources: dict[str, Source]) -> None:
    if name in sources:
        inner = sources.pop(name)
        function: Any = inner.compile()
        text_key = inner.text
    else:
        function = getattr(type(module), name)
        text_key = ""
    source = boundary_source(name, function, boundary.child)
    source.text += "".join(f"# {line}\n" for line in text_key.splitlines())
    sources[name] = source


def _rewritten(
    module: nn.Module, call: Call, edits: tuple[Edit, ...], body: Body | None
) -> Iterator[tuple[str, tuple[list[Source], str] | str]]:
    """Every method to replace: (name, (its sources, fingerprint of the traced graph)), or (name, why it is refused)."""
    main = active_method(module)
    try:
        body = body or trace(module, call, main)
    except Refusal as refusal:
        raise ModelError(f"{type(module).__name__}.{main} {refusal}") from None
    try:
        yield main, _write(module, call, main, body, edits, body.graph, complete=True)
    except Lost as lost:
        raise ModelError(f"{type(module).__name__}.{main}: {lost}") from None
    for name in alternatives(module):
        try:
            other = trace(module, call, name)
        except Refusal as refusal:
            if _mentions(module, name, body.graph, edits):
                yield name, f"it {refusal}"
            continue
        complete = _results(other.graph) == _results(body.graph)
        try:
            written = _write(module, call, name, other, edits, body.graph, complete=complete)
        except Lost as lost:
            yield name, str(lost)
            continue
        if written[0]:
            yield name, written


def _write(
    module: nn.Module,
    call: Call,
    name: str,
    body: Body,
    edits: tuple[Edit, ...],
    reference: fx.Graph,
    *,
    complete: bool,
) -> tuple[list[Source], str]:
    """Sources of one method, in both modes where they differ, and the fingerprint of what was traced."""
    graph, held = insert(body.graph, edits, reference, complete=complete)
    if not held:
        return [], ""
    mark = fingerprint(body.graph)
    if not body.reads_training:
        return [body_source(name, body, graph, module)], mark
    try:
        training = trace(module, call, name, training=True)
    except Refusal as refusal:
        raise Lost(f"in train mode it {refusal}") from None
    if fingerprint(training.graph) == mark:
        return [body_source(name, body, graph, module)], mark
    training_graph, _ = insert(training.graph, edits, reference, complete=complete)
    evaluation_name, training_name = f"_simam_{name}_eval", f"_simam_{name}_train"
    return [
        body_source(evaluation_name, body, graph, module),
        body_source(training_name, training, training_graph, module),
        dispatch_source(name, body.arguments, training_name, evaluation_name),
    ], mark


def alternatives(module: nn.Module) -> list[str]:
    """Methods that may run in place of the active one: `forward_*` with the same required arguments, not used by it."""
    stock = stock_class(module)
    main = active_method(module)
    used = _reachable(stock, main)
    required = _required(getattr(stock, main))
    found = []
    for name in dir(stock):
        if name == main or name in used or not (name == "forward" or name.startswith("forward_")):
            continue
        function = inspect.getattr_static(stock, name)
        if (
            inspect.isfunction(function)
            and function is not nn.Module.__dict__.get(name)
            and _required(function) == required
        ):
            found.append(name)
    return found


def _required(function: Any) -> int:
    try:
        parameters = list(inspect.signature(inspect.unwrap(function)).parameters.values())[1:]
    except (TypeError, ValueError):
        return -1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in parameters)


def _reachable(stock: type, name: str) -> set[str]:
    """Names of the methods of `stock` that `name` may call, directly or not, itself included.

    A method that says `super()`, or names a class it inherits from, may call what it overrides: those count as well.
    """
    found: set[str] = set()
    waiting = [name]
    while waiting:
        step = waiting.pop()
        if step in found or not inspect.isfunction(inspect.getattr_static(stock, step, None)):
            continue
        found.add(step)
        words = {"super"}
        for base in stock.__mro__:
            function = vars(base).get(step)
            if inspect.isfunction(function) and words & {"super", base.__name__}:
                words = _names_in(inspect.unwrap(function).__code__)
                waiting.extend(words)
    return found


def _names_in(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _mentions(module: nn.Module, name: str, graph: fx.Graph, edits: tuple[Edit, ...]) -> bool:
    """Does the method, or one it calls, name a child that computes or reads an attended value?"""
    stock = stock_class(module)
    words: set[str] = set()
    for step in _reachable(stock, name):
        words |= _names_in(inspect.unwrap(getattr(stock, step)).__code__)
    concerned: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module" and any(str(node.target) == edit.value.partition("[")[0] for edit in edits):
            concerned.add(str(node.target).partition(".")[0])
    return bool(words & concerned)


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
