"""SimAM in an exported graph: found by its formula, whatever the format, and named where the file names modules.

    gate = sigmoid(n * n + 1/2)    n = small / sqrt(mean(small * small) * c + 4 lambda s^2)    small = s * (x - mean(x))

with s = `EXPORT_SCALE`; see `simam_inject.attention.composite`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from simam_inject.attention.composite import EXPORT_SCALE

Value = str | float | None
"""An operand: the name of a value, or a constant number; None for anything else."""
_CASTS = ("cast", "identity", "to", "_to_copy")
_MEANS = ("mean", "reducemean")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a graph, stored under the name of its result."""

    kind: str
    """Name of the operator in lower case, e.g. `mul`."""
    operands: tuple[Value, ...]
    module: str = ""
    """Path of the module that computes it; "" if the file does not say."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One occurrence of the formula."""

    e_lambda: float
    module: str
    """Path of the SimAM module; "" if the file does not say."""
    is_live: bool
    """An output of the graph depends on it."""


def find_gates(graph: Mapping[str, Operation], results: Iterable[Value]) -> tuple[Gate, ...]:
    """Every gate of a graph, in its order.

    Args:
        graph: all operations by the name of their result; one with several results is stored under each of them.
        results: the names of the outputs.
    """
    live: set[Value] = set()
    pending = list(results)
    while pending:
        name = pending.pop()
        if isinstance(name, str) and name in graph and name not in live:
            live.add(name)
            pending += graph[name].operands
    gates = [
        (name, operation, _lambda_of(graph, operation))
        for name, operation in graph.items()
        if operation.kind == "sigmoid"
    ]
    return tuple(
        Gate(e_lambda, operation.module, name in live) for name, operation, e_lambda in gates if e_lambda is not None
    )


def _lambda_of(graph: Mapping[str, Operation], sigmoid: Operation) -> float | None:
    """The lambda of a gate; None for a sigmoid of something else."""

    def uncast(value: Value) -> Value:
        while isinstance(value, str) and value in graph and graph[value].kind in _CASTS:
            value = graph[value].operands[0]
        return value

    def operands(value: Value, *kinds: str) -> list[Value]:
        """Those of an operation of such a kind, constants last."""
        operation = graph.get(value) if isinstance(value, str) else None
        if operation is None or operation.kind not in kinds:
            raise ValueError
        return sorted(map(uncast, operation.operands[:2]), key=lambda operand: not isinstance(operand, str))

    def is_square(value: Value, factor: Value) -> bool:
        return operands(value, "mul") == [factor, factor]

    try:
        square, half = operands(uncast(sigmoid.operands[0]), "add")
        normal = operands(square, "mul")[0]
        small, root = operands(normal, "div")
        spread, constant = operands(operands(root, "sqrt")[0], "add")
        variance = next(factor for factor in operands(spread, "mul") if _kind(graph, factor) in _MEANS)
        squares = operands(variance, *_MEANS)[0]
        is_gate = half == 0.5 and is_square(square, normal) and is_square(squares, small)
    except (ValueError, StopIteration):
        return None
    return constant / (4 * EXPORT_SCALE**2) if is_gate and isinstance(constant, float) else None


def _kind(graph: Mapping[str, Operation], value: Value) -> str:
    return graph[value].kind if isinstance(value, str) and value in graph else ""
