"""ONNX: written by torch's dynamo exporter, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  # torch's exporter needs it, and says so later and less clearly
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.gates import Artefact, Gate, Operation, find_gates
from simam_inject.export.records import ExportError
from simam_inject.export.shapes import dynamic_shapes


def write(model: nn.Module, example: Example, dynamic: tuple[str, ...], path: Path) -> None:
    """Export to one self-contained file, with the size names batch, height and width where they may vary.

    Raises:
        ExportError: the weights do not fit into one file, so that torch wrote others beside it.
    """
    program = torch.onnx.export(
        model,
        example.args,
        kwargs=example.kwargs,
        dynamo=True,
        dynamic_shapes=dynamic_shapes(model, example, dynamic, named=True),
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    others = [file.name for file in path.parent.iterdir() if file.name.startswith(path.name) and file != path]
    if others:
        raise ExportError(f"the weights are too large for one ONNX file (torch wrote {others[0]} beside it); use .pt2")


def read(path: Path) -> Artefact:
    """Open a file. Its graph is checked by `onnx.checker`."""
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(example: Example) -> list[Tensor]:
        names = [wanted.name for wanted in session.get_inputs()]
        given = {name: value for name, value in example.kwargs.items() if name in names and isinstance(value, Tensor)}
        others = [tensor for tensor in example.tensors if not any(tensor is value for value in given.values())]
        given.update(zip((name for name in names if name not in given), others, strict=True))
        feed = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in given.items()}
        return [torch.from_numpy(np.array(result)) for result in session.run(None, feed)]

    return Artefact(_gates_of(model), run)


def _gates_of(model: onnx.ModelProto) -> tuple[Gate, ...]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    constants = {
        name: float(numpy_helper.to_array(tensor).item())
        for name, tensor in tensors.items()
        if all(length == 1 for length in tensor.dims)
    }
    operations = [
        Operation(node.op_type.lower(), [constants.get(name, name) for name in node.input], node.output, scope_of(node))
        for node in model.graph.node
    ]
    return find_gates(operations, [result.name for result in model.graph.output])


def scope_of(node: onnx.NodeProto) -> str:
    """Path of the node's module: from the dynamo exporter's metadata, else from the node name of the older exporter."""
    metadata: dict[str, str] = {entry.key: entry.value for entry in node.metadata_props}
    written = metadata.get("pkg.torch.onnx.name_scopes")
    if written:
        try:
            scopes = ast.literal_eval(written)
        except (ValueError, SyntaxError):
            return ""
        return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
    path = ""
    for part in node.name.split("/")[1:-1]:  # /layer1/layer1.0.conv2.simam/Sigmoid
        path = part if part.startswith(f"{path}.") or not path else f"{path}.{part}"
    return path
