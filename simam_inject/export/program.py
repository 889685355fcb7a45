"""`.pt2`: `torch.export`'s own format, loaded without pickle by `torch.export.load`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.gates import Artefact, Graph, Operation
from simam_inject.export.shapes import dynamic_shapes
from simam_inject.verification.outputs import tensors_of


def write(model: nn.Module, example: Example, dynamic: tuple[str, ...], path: Path) -> None:
    """Export and save."""
    sizes = dynamic_shapes(model, example, dynamic)
    torch.export.save(torch.export.export(model, example.args, example.kwargs, dynamic_shapes=sizes), path)


def read(path: Path) -> Artefact:
    """Open a file."""
    program = torch.export.load(path)
    module = program.module()
    return Artefact(_graph_of(program.graph), lambda example: list(tensors_of(example.run(module))))


def _graph_of(graph: fx.Graph) -> Graph:
    constants: dict[str, float] = {}
    operations = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        inputs = []
        for argument in (*node.args, *(other for other in node.all_input_nodes if other not in node.args)):
            if isinstance(argument, (int, float)):
                constants[f"={argument!r}"] = float(argument)
            if isinstance(argument, (int, float, fx.Node)):
                inputs.append(argument.name if isinstance(argument, fx.Node) else f"={argument!r}")
        kind = str(node.target).removeprefix("aten.").partition(".")[0]  # aten.add.Tensor
        operations.append(Operation(kind, inputs, (node.name,), _scope(node)))
    return Graph(operations, constants, [node.name for node in graph.output_node().all_input_nodes])


def _scope(node: fx.Node) -> str:
    """The innermost module of the stack that exporting recorded: its values are (path, class)."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""
