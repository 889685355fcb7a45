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
class Operation:
    """One operation. Values are names, unique in the graph."""

    kind: str
    """add, div, mul, pow, sigmoid, sqrt, ...: the format's own name, without prefix and in lower case."""
    inputs: Sequence[str]
    outputs: Sequence[str]
    scope: str = ""
    """Path of the module whose forward it is from; "" if the file does not say."""


class Graph:
    """An exported program without calls of submodules.

    Args:
        operations: in the order of the file.
        constants: scalar constants by the name of their value.
        results: names of the values that are returned.
    """

    def __init__(self, operations: Iterable[Operation], constants: dict[str, float], results: Iterable[str]) -> None:
        self.operations = tuple(operations)
        self.constants = constants
        self.results = tuple(results)
        self._producers = {name: operation for operation in self.operations for name in operation.outputs}

    def needed(self) -> set[str]:
        """Every value that a result depends on."""
        found: set[str] = set()
        waiting = list(self.results)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self._producers[name].inputs if name in self._producers else ()
        return found

    def operands(self, name: str, *kinds: str) -> list[str]:
        """What an operation of one of these kinds computes a value from, casts aside.

        Raises:
            LookupError: another operation computes it.
        """
        operation = self._producers[self._before_casts(name)]
        if operation.kind not in kinds:
            raise LookupError(f"{name} is not the result of {kinds}")
        return [self._before_casts(operand) for operand in operation.inputs]

    def constant_and_rest(self, name: str) -> tuple[float, str]:
        """The constant and the other term of a sum; raises a LookupError for anything else."""
        one, other = self.operands(name, "add")[:2]
        return (self.constants[one], other) if one in self.constants else (self.constants[other], one)

    def _before_casts(self, name: str) -> str:
        while name in self._producers and self._producers[name].kind in _CASTS:
            name = self._producers[name].inputs[0]
        return name


@dataclass(frozen=True, slots=True)
class Artefact:
    """An exported file, opened."""

    graph: Graph
    run: Callable[[Example], list[Tensor]]
    """Every tensor that the exported program returns, on the CPU or where the program keeps its weights."""
    size: tuple[int | str, ...] = ()
    """Of the first input, with names for the lengths that are open; of ONNX files only."""


def find_gates(graph: Graph) -> tuple[Gate, ...]:
    """Every SimAM in the graph, in its order."""
    needed = graph.needed()
    gates = []
    for operation in graph.operations:
        if operation.kind == "sigmoid":
            module = operation.scope if re.search(r"(^|\.)simam(_\w*)?$", operation.scope) else ""
            e_lambda = _read_lambda(graph, operation.inputs[0])
            if module or e_lambda is not None:
                gates.append(Gate(module, e_lambda, operation.outputs[0] in needed))
    return tuple(gates)


def _read_lambda(graph: Graph, argument: str) -> float | None:
    """Lambda, if a sigmoid's argument is SimAM's."""
    try:
        half, square = graph.constant_and_rest(argument)
        base, exponent = graph.operands(square, "mul", "pow")[:2]
        root = graph.operands(base, "div")[1]
        floor, _ = graph.constant_and_rest(graph.operands(root, "sqrt")[0])
    except (LookupError, ValueError):  # another operation, or another number of operands
        return None
    is_square = exponent == base or graph.constants.get(exponent) == 2
    return floor / (4 * EXPORT_SCALE**2) if is_square and abs(half - 0.5) < 1e-3 else None
