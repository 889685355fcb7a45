"""`.pt2`: `torch.export`'s own format, loaded without pickle by `torch.export.load`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import fx, nn
from torch.export import Dim

from simam_inject.dataflow.example import Example
from simam_inject.export.graph import Artefact, Operation, find_gates
from simam_inject.export.shapes import NAMES, dynamic_shapes
from simam_inject.verification.outputs import tensors_of


def write(model: nn.Module, examples: Sequence[Example], path: Path) -> None:
    """Export and save."""
    sizes = dynamic_shapes(model, examples, [Dim.DYNAMIC] * len(NAMES))
    torch.export.save(torch.export.export(model, examples[0].args, examples[0].kwargs, dynamic_shapes=sizes), path)


def read(path: Path) -> Artefact:
    """Open a file."""
    program = torch.export.load(path)
    module = program.module()
    if any(node.op == "get_attr" for node in program.graph.nodes):  # graphs of regions under autocast or a grad mode
        program = program.run_decompositions({})  # writes them out, without the paths of modules
    graph = {node.name: _operation(node) for node in program.graph.nodes if node.op == "call_function"}
    results = [node.name for node in program.graph.output_node().all_input_nodes]
    return Artefact(find_gates(graph, results), lambda example: list(tensors_of(example.run(module))))


def _operation(node: fx.Node) -> Operation:
    inner = [argument for argument in node.all_input_nodes if argument not in node.args]  # of lists, keywords
    plain = [argument for argument in (*node.args, *inner) if isinstance(argument, (int, float, fx.Node))]
    inputs = [argument.name if isinstance(argument, fx.Node) else float(argument) for argument in plain]
    kind = str(node.target).removeprefix("aten.").partition(".")[0]  # aten.add.Tensor
    stack = list(node.meta.get("nn_module_stack", {}).values())  # (path, class) of each module, the innermost last
    return Operation(kind, inputs, str(stack[-1][0]) if stack else "")
