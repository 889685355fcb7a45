"""SimAM in an exported graph: found by its formula, and by name where the file names the modules.

    gate = sigmoid(n * n + 1/2)    n = small / sqrt(mean(small * small) * c + 4 lambda s^2)    small = s * (x - mean(x))

with s = `EXPORT_SCALE`; see `simam_inject.attention.composite`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from simam_inject.attention.composite import EXPORT_SCALE

_CASTS = ("cast", "identity", "to", "_to_copy")
Value = str | float | None
"""The name of a value, or a constant number; None for any other operand."""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One operation of a graph."""

    kind: str
    """add, div, mul, sigmoid, ...: the format's own name, without prefix and in lower case."""
    operands: tuple[Value, ...]
    module: str = ""
    """Path of the module whose forward it is from; "" if the file does not say."""


@dataclass(frozen=True, slots=True)
class GraphSimAM:
    """One SimAM in a graph."""

    module: str
    """Path of the SimAM module; "" if the file does not say."""
    e_lambda: float | None
    """As in the constants; None where the file computes SimAM in another form than this package writes."""
    is_live: bool
    """An output of the graph depends on it."""


def find_simams(graph: Mapping[str, GraphNode], results: Iterable[Value]) -> tuple[GraphSimAM, ...]:
    """Every SimAM of a graph, in order; the graph has all operations by the name of each of their results."""
    live: set[str] = set()
    pending = list(results)
    while pending:
        name = pending.pop()
        if isinstance(name, str) and name in graph and name not in live:
            live.add(name)
            pending += graph[name].operands
    simams = []
    for name, operation in graph.items():
        if operation.kind == "sigmoid":
            module = operation.module if re.search(r"(^|\.)simam(_\w*)?$", operation.module) else ""
            e_lambda = _lambda_of(graph, operation.operands[0])
            if module or e_lambda is not None:
                simams.append(GraphSimAM(module, e_lambda, name in live))
    return tuple(simams)


def _lambda_of(graph: Mapping[str, GraphNode], argument: Value) -> float | None:
    """The lambda, if this is the argument of a gate."""

    def operands(value: Value, *kinds: str) -> list[Value]:
        """Those of an operation of such a kind, constants last, without casts."""
        operation = graph[str(uncast(value))]
        if operation.kind not in kinds:
            raise LookupError
        return sorted(map(uncast, operation.operands[:2]), key=lambda operand: not isinstance(operand, str))

    def uncast(value: Value) -> Value:
        while isinstance(value, str) and value in graph and graph[value].kind in _CASTS:
            value = graph[value].operands[0]
        return value

    try:
        square, half = operands(argument, "add")
        normal, exponent = operands(square, "mul", "pow")
        _, root = operands(normal, "div")
        _, constant = operands(operands(root, "sqrt")[0], "add")
    except (LookupError, ValueError):  # another operation, or other operands
        return None
    if not isinstance(half, float) or not isinstance(constant, float) or abs(half - 0.5) > 1e-3:
        return None
    return constant / (4 * EXPORT_SCALE**2) if exponent in (normal, 2) else None
