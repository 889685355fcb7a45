"""Recognise SimAM in an exported graph, whatever the format, by the name of its module and by what is computed.

Each format is first written as operations with kinds, names of values and scalar constants. In it a gate is

    sigmoid(n^2 + 1/2),   n = small / sqrt(energy),   energy = mean(small^2) c + 4 lambda s^2

which no other layer computes, and lambda can be read from the constants. A sigmoid that the file says is of a module
called `simam...` counts as well, so a graph that was optimised beyond recognition is still counted if it has names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from simam_inject.attention.composite import EXPORT_SCALE
from simam_inject.dataflow.example import Example

_CASTS = ("cast", "identity", "to", "_to_copy")
Value = str | float
"""The name of a value, unique in its graph, or a scalar constant."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of an exported graph."""

    kind: str
    """add, div, mul, pow, sigmoid, sqrt, ...: the format's own name, without prefix and in lower case."""
    inputs: Sequence[Value]
    scope: str = ""
    """Path of the module whose forward it is from; "" if the file does not say."""


Graph = dict[str, Operation]
"""Name of a value -> the operation that computes it, in the order of the file. Calls of submodules are written out."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One SimAM in an exported graph."""

    module: str
    """Path of the module it was exported from (`layer1.0.conv2.simam`); "" where the file does not say."""
    e_lambda: float | None
    """As in the graph's constants; None where the graph computes SimAM in another form than this package writes."""
    is_live: bool
    """A result of the graph depends on it."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """An exported file, opened."""

    gates: tuple[Gate, ...]
    """Every SimAM in its graph, in order."""
    run: Callable[[Example], list[Tensor]]
    """Every tensor that the exported program returns, on the CPU or on the device of its weights."""


def find_gates(graph: Graph, results: Iterable[Value]) -> tuple[Gate, ...]:
    """Every SimAM in a graph, in order.

    Args:
        graph: all of its operations.
        results: names of the values that it returns.
    """
    needed: set[Value] = set()
    waiting = list(results)
    while waiting:
        name = waiting.pop()
        if name in graph and name not in needed:
            needed.add(name)
            waiting += graph[str(name)].inputs
    gates = []
    for name, operation in graph.items():
        if operation.kind == "sigmoid":
            module = operation.scope if re.search(r"(^|\.)simam(_\w*)?$", operation.scope) else ""
            e_lambda = _read_lambda(graph, operation.inputs[0])
            if module or e_lambda is not None:
                gates.append(Gate(module, e_lambda, name in needed))
    return tuple(gates)


def _read_lambda(graph: Graph, argument: Value) -> float | None:
    """Lambda, if a sigmoid's argument is SimAM's."""

    def without_casts(value: Value) -> Value:
        while isinstance(value, str) and value in graph and graph[value].kind in _CASTS:
            value = graph[value].inputs[0]
        return value

    def operands(value: Value, *kinds: str) -> list[Value]:
        operation = graph[str(without_casts(value))]
        if operation.kind not in kinds:
            raise LookupError
        return [without_casts(operand) for operand in operation.inputs[:2]]

    def constant_and_rest(value: Value) -> tuple[float, Value]:
        constant, rest = sorted(operands(value, "add"), key=lambda operand: isinstance(operand, str))
        if isinstance(constant, str):
            raise LookupError
        return constant, rest

    try:
        half, square = constant_and_rest(argument)
        base, exponent = operands(square, "mul", "pow")
        root = operands(base, "div")[1]
        floor, _ = constant_and_rest(operands(root, "sqrt")[0])
    except (LookupError, ValueError):  # another operation, or other operands
        return None
    return floor / (4 * EXPORT_SCALE**2) if exponent in (base, 2) and abs(half - 0.5) < 1e-3 else None
