"""`.pt2`: `torch.export`'s own format, loaded without pickle by `torch.export.load`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from simam_inject.dataflow.example import Example
from simam_inject.export.gates import Graph, Operation
from simam_inject.export.records import ExportError
from simam_inject.export.shapes import dynamic_shapes
from simam_inject.verification.outputs import tensors_of

_KINDS = {
    "aten.add.Tensor": "add",
    "aten.div.Tensor": "div",
    "aten.mul.Tensor": "mul",
    "aten.pow.Tensor_Scalar": "pow",
    "aten.sigmoid.default": "sigmoid",
    "aten.sqrt.default": "sqrt",
    "aten.to.dtype": "cast",
    "aten._to_copy.default": "cast",
}


def write(model: nn.Module, example: Example, dynamic: tuple[str, ...], path: Path) -> None:
    """Export and save."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, nothing a user can act on
        program = torch.export.export(
            model, example.args, example.kwargs, dynamic_shapes=dynamic_shapes(model, example, dynamic)
        )
        torch.export.save(program, path)


def read(path: Path) -> _ProgramArtefact:
    """Open a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _ProgramArtefact(torch.export.load(path))
    except Exception as error:  # zip, JSON and torch errors alike
        raise ExportError(f"{path} cannot be opened by torch.export.load: {error}") from None


class _ProgramArtefact:
    def __init__(self, program: ExportedProgram) -> None:
        self.graph = graph_of(program)
        self.module = program.module()

    def run(self, example: Example) -> list[Tensor]:
        return list(tensors_of(example.run(self.module)))


def graph_of(program: ExportedProgram) -> Graph:
    """The program as this package reads graphs."""
    constants: dict[str, float] = {}
    operations = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            inputs = _inputs(node, constants)
            operations.append(
                Operation(_KINDS.get(str(node.target), str(node.target)), inputs, (node.name,), _scope(node))
            )
    output = next(reversed(program.graph.nodes))
    return Graph(tuple(operations), constants, tuple(node.name for node in output.all_input_nodes))


def _inputs(node: fx.Node, constants: dict[str, float]) -> tuple[str, ...]:
    names = []
    for argument in node.args:
        if isinstance(argument, (int, float)):
            name = f"={float(argument)!r}"
            constants[name] = float(argument)
            names.append(name)
        elif isinstance(argument, fx.Node):
            names.append(argument.name)
    others = [other.name for other in node.all_input_nodes if other.name not in names]
    return (*names, *others)


def _scope(node: fx.Node) -> str:
    """The innermost module of the stack that exporting recorded: its values are (path, class)."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""
