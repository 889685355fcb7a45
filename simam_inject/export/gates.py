"""Recognise SimAM in an exported graph, whatever the format, by name and by what is computed.

Each format is first turned into a `Graph`: operations with kinds, names of values, scalar constants. In it a gate is

    sigmoid(n^2 + 1/2),   n = small / sqrt(energy),   energy = mean(small^2) c + 4 lambda s^2

which no other layer computes, and lambda can be read back. A sigmoid that the file says came from a module called
`simam...` counts as well, so a graph that was optimised beyond recognition is still counted while its names survive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from simam_inject.attention.composite import EXPORT_SCALE
from simam_inject.dataflow.example import Example

_PASSING = ("cast", "identity", "to", "_to_copy")
"""Kinds that hand their first input on."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One SimAM as it stands in an exported graph."""

    module: str
    """Path of the module it was exported from (`layer1.0.conv2.simam`); "" where the file does not say."""
    e_lambda: float | None
    """Read off the graph's constants; None where the graph computes SimAM in another form than this package writes."""
    is_live: bool
    """Its product reaches a result of the graph."""


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
    """An exported program, flattened, without casts.

    Args:
        operations: in the order of the file.
        constants: scalar constants by the name of their value.
        results: names of the values that are returned.
    """

    def __init__(self, operations: Sequence[Operation], constants: dict[str, float], results: Sequence[str]) -> None:
        self.operations = operations
        self._producers = {name: operation for operation in operations for name in operation.outputs}
        self.constants = constants
        self._results = results

    def origin(self, name: str) -> str:
        """The value before any casts."""
        while (operation := self._producers.get(name)) is not None and operation.kind in _PASSING:
            name = operation.inputs[0]
        return name

    def inputs(self, name: str, kind: str) -> tuple[str, ...]:
        """What the operation of this kind is given that computes the value; a LookupError if it is another."""
        operation = self._producers.get(self.origin(name))
        if operation is None or operation.kind != kind:
            raise LookupError(f"{name} is computed by no {kind}")
        return tuple(map(self.origin, operation.inputs))

    def reaching(self) -> set[str]:
        """Every value that a result depends on."""
        found: set[str] = set()
        waiting = list(self._results)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                if name in self._producers:
                    waiting.extend(self._producers[name].inputs)
        return found


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
    reaching = graph.reaching()
    gates: list[Gate] = []
    for operation in graph.operations:
        if operation.kind == "sigmoid":
            e_lambda = _read_lambda(graph, operation.inputs[0])
            last = operation.scope.rpartition(".")[2]
            module = operation.scope if last == "simam" or last.startswith("simam_") else ""
            if module or e_lambda is not None:
                gates.append(Gate(module, e_lambda, operation.outputs[0] in reaching))
    return tuple(gates)


def _read_lambda(graph: Graph, argument: str) -> float | None:
    """Lambda, if a sigmoid's argument is SimAM's."""
    try:
        square, half = _sum_with_constant(graph, argument)
        _, root = graph.inputs(_root_of_square(graph, square), "div")[:2]
        (energy,) = graph.inputs(root, "sqrt")
        _, floor = _sum_with_constant(graph, energy)
    except (LookupError, ValueError):  # another operation, or another number of operands
        return None
    return floor / (4 * EXPORT_SCALE**2) if abs(half - 0.5) < 1e-3 else None


def _sum_with_constant(graph: Graph, name: str) -> tuple[str, float]:
    """The other term, and the constant."""
    one, other, *_ = graph.inputs(name, "add")
    return (one, graph.constants[other]) if other in graph.constants else (other, graph.constants[one])


def _root_of_square(graph: Graph, name: str) -> str:
    """n, of a value that is computed as n * n or n ** 2."""
    try:
        one, other = graph.inputs(name, "mul")
    except LookupError:
        one, other = graph.inputs(name, "pow")
        other = one if graph.constants[other] == 2 else other
    if one != other:
        raise LookupError(f"{name} is no square")
    return one
