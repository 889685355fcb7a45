"""Recognise SimAM in an exported graph, whatever the format, by what is computed.

Each format is first turned into a `Graph`: operations with kinds, names of values, scalar constants. In it a gate is

    sigmoid(n^2 + 1/2),   n = small / sqrt(energy),   energy = mean(small^2) c + 4 lambda s^2

which no other layer computes, and lambda can be read back. A sigmoid that the file says came from a module called
`simam...` counts as well, so a graph that was optimised beyond recognition is still counted while its names survive.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from simam_inject.attention.composite import EXPORT_SCALE
from simam_inject.export.records import Gate

_PASSING = ("cast", "identity")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. Values are names, unique in the graph."""

    kind: str
    """add, cast, div, identity, mul, pow, sigmoid, sqrt; anything else is the format's own name."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scope: str = ""
    """Path of the module whose forward it is from; "" if the file does not say."""


@dataclass(frozen=True, slots=True)
class Graph:
    """An exported program, flattened."""

    operations: tuple[Operation, ...]
    constants: dict[str, float]
    """Scalar constants by the name of their value."""
    results: tuple[str, ...]
    producers: dict[str, Operation] = field(init=False)

    def __post_init__(self) -> None:
        producers = {name: operation for operation in self.operations for name in operation.outputs}
        object.__setattr__(self, "producers", producers)

    def source(self, name: str) -> Operation | None:
        """The operation that computes the value, casts looked through."""
        return self.producers.get(self.origin(name))

    def origin(self, name: str) -> str:
        """The value before any casts."""
        operation = self.producers.get(name)
        while operation is not None and operation.kind in _PASSING:
            name = operation.inputs[0]
            operation = self.producers.get(name)
        return name

    def constant(self, name: str) -> float | None:
        """The scalar that the value is, or None."""
        return self.constants.get(self.origin(name))

    def reaching(self) -> set[str]:
        """Every value that a result depends on."""
        found: set[str] = set()
        waiting = list(self.results)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                if name in self.producers:
                    waiting.extend(self.producers[name].inputs)
        return found


def find_gates(graph: Graph) -> tuple[Gate, ...]:
    """Every SimAM in the graph, in its order."""
    reaching = graph.reaching()
    gates: list[Gate] = []
    for operation in graph.operations:
        if operation.kind != "sigmoid":
            continue
        module = _attention_of(operation.scope)
        is_gate, e_lambda = _read(graph, operation)
        if is_gate or module:
            gates.append(Gate(module, e_lambda, operation.outputs[0] in reaching))
    return tuple(gates)


def _attention_of(scope: str) -> str:
    """The scope, if its last part is the name of a SimAM that injection made."""
    last = scope.rpartition(".")[2]
    return scope if last == "simam" or last.startswith("simam_") else ""


def _read(graph: Graph, sigmoid: Operation) -> tuple[bool, float | None]:
    """Whether the sigmoid's argument is SimAM's, and lambda."""
    argument = graph.source(sigmoid.inputs[0])
    square, half = _split(graph, argument, "add")
    if square is None or half is None or abs(half - 0.5) > 1e-3:
        return False, None
    normal = _square_root(graph, square)
    ratio = None if normal is None else graph.source(normal)
    if ratio is None or ratio.kind != "div":
        return False, None
    root = graph.source(ratio.inputs[1])
    energy = graph.source(root.inputs[0]) if root is not None and root.kind == "sqrt" else None
    _, floor = _split(graph, energy, "add")
    if floor is None:
        return False, None
    return True, floor / (4 * EXPORT_SCALE**2)


def _split(graph: Graph, operation: Operation | None, kind: str) -> tuple[str | None, float | None]:
    """The variable and the constant operand of a commutative operation of this kind."""
    if operation is None or operation.kind != kind or len(operation.inputs) < 2:
        return None, None
    one, other = operation.inputs[:2]
    if (value := graph.constant(other)) is not None:
        return one, value
    if (value := graph.constant(one)) is not None:
        return other, value
    return None, None


def _square_root(graph: Graph, name: str) -> str | None:
    """n, if the value is n^2."""
    operation = graph.source(name)
    if operation is None:
        return None
    if operation.kind == "mul" and graph.origin(operation.inputs[0]) == graph.origin(operation.inputs[1]):
        return operation.inputs[0]
    if operation.kind == "pow" and graph.constant(operation.inputs[1]) == 2:
        return operation.inputs[0]
    return None
