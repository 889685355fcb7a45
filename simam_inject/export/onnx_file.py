"""ONNX: written by torch's dynamo exporter, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  # torch's exporter needs it, and says so later and less clearly
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.gates import Graph, Operation
from simam_inject.export.records import ExportError
from simam_inject.export.shapes import dynamic_shapes

_KINDS = {
    "Add": "add",
    "Cast": "cast",
    "Div": "div",
    "Identity": "identity",
    "Mul": "mul",
    "Pow": "pow",
    "Sigmoid": "sigmoid",
    "Sqrt": "sqrt",
}
_LARGEST = 2**31 - 1
"""Bytes that one protobuf file can hold."""


def write(model: nn.Module, example: Example, dynamic: tuple[str, ...], path: Path) -> None:
    """Export to one self-contained file, with the size names batch, height and width where they may vary."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > _LARGEST:
        raise ExportError(f"the weights are {size:,} bytes and one ONNX file holds {_LARGEST:,}; export to .pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, nothing a user can act on
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


def read(path: Path) -> _OnnxArtefact:
    """Open a file. Its graph is checked by `onnx.checker`."""
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each of the three has error classes of its own
        raise ExportError(f"{path} cannot be opened as ONNX: {error}") from None
    return _OnnxArtefact(_graph_of(model), session)


class _OnnxArtefact:
    def __init__(self, graph: Graph, session: onnxruntime.InferenceSession) -> None:
        self.graph = graph
        self.session = session

    def run(self, example: Example) -> list[Tensor]:
        names = [wanted.name for wanted in self.session.get_inputs()]
        given = {name: value for name, value in example.kwargs.items() if name in names and isinstance(value, Tensor)}
        free = [tensor for tensor in example.tensors if not any(tensor is value for value in given.values())]
        given.update(zip((name for name in names if name not in given), free, strict=True))
        feed = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in given.items()}
        return [torch.from_numpy(np.array(result)) for result in self.session.run(None, feed)]


def _graph_of(model: onnx.ModelProto) -> Graph:
    constants: dict[str, float] = {}
    for initializer in model.graph.initializer:
        _note(constants, initializer.name, initializer)
    operations = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    _note(constants, node.output[0], attribute.t)
        kind = _KINDS.get(node.op_type, node.op_type)
        operations.append(Operation(kind, tuple(node.input), tuple(node.output), scope_of(node)))
    return Graph(tuple(operations), constants, tuple(result.name for result in model.graph.output))


def _note(constants: dict[str, float], name: str, tensor: onnx.TensorProto) -> None:
    if sum(length != 1 for length in tensor.dims) == 0:
        constants[name] = float(numpy_helper.to_array(tensor).reshape(-1)[0])


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
