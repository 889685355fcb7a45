"""`.pt2`: `torch.export`'s own format, loaded without pickle by `torch.export.load`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.gates import Artefact, Gate, Operation, find_gates
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
    return Artefact(_gates_of(program.graph), lambda example: list(tensors_of(example.run(module))))


def _gates_of(graph: fx.Graph) -> tuple[Gate, ...]:
    operations = []
    for node in graph.nodes:
        if node.op == "call_function":
            inner = [argument for argument in node.all_input_nodes if argument not in node.args]  # of lists, keywords
            plain = [argument for argument in (*node.args, *inner) if isinstance(argument, (int, float, fx.Node))]
            inputs = [argument.name if isinstance(argument, fx.Node) else float(argument) for argument in plain]
            kind = str(node.target).removeprefix("aten.").partition(".")[0]  # aten.add.Tensor
            operations.append(Operation(kind, inputs, (node.name,), _scope(node)))
    return find_gates(operations, [node.name for node in graph.output_node().all_input_nodes])


def _scope(node: fx.Node) -> str:
    """The innermost module of the stack that exporting recorded: its values are (path, class)."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""
