"""ONNX: written by torch's dynamo exporter, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import ir
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.graph import Artefact, Operation, Value, find_gates
from simam_inject.export.records import ExportError
from simam_inject.export.shapes import NAMES, dynamic_shapes


def write(model: nn.Module, examples: Sequence[Example], path: Path) -> None:
    """Export to one self-contained file, with the size names batch, height and width where they may vary.

    Raises:
        ExportError: the weights do not fit into one file, so that torch wrote others beside it.
    """
    program = torch.onnx.export(
        model,
        examples[0].args,
        kwargs=examples[0].kwargs,
        dynamo=True,
        dynamic_shapes=dynamic_shapes(model, examples, NAMES),
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    others = [file.name for file in path.parent.iterdir() if file.name.startswith(path.name) and file != path]
    if others:
        raise ExportError(f"the weights are too large for one ONNX file (torch wrote {others[0]} beside it); use .pt2")


def read(path: Path) -> Artefact:
    """Open a file. Its graph is checked by `onnx.checker`."""
    onnx.checker.check_model(str(path))
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

    model = ir.load(path)
    graph = {
        str(output.name): Operation(
            node.op_type.lower(), [_value(given) for given in node.inputs if given], scope_of(node)
        )
        for node in model.graph
        for output in node.outputs
    }
    return Artefact(find_gates(graph, map(_value, model.graph.outputs)), run)


def _value(value: ir.Value) -> Value:
    tensor = ir.convenience.get_const_tensor(value)
    return str(value.name) if tensor is None or tensor.size != 1 else float(tensor.numpy().item())


def scope_of(node: ir.Node) -> str:
    """Path of the node's module: from the dynamo exporter's metadata, else from the node name of the older exporter."""
    scopes = re.findall("'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))  # a list as text
    if scopes:
        return str(scopes[-2]) if len(scopes) > 1 else ""
    path = ""
    for part in str(node.name).split("/")[1:-1]:  # /layer1/layer1.0.conv2.simam/Sigmoid
        path = part if part.startswith(f"{path}.") or not path else f"{path}.{part}"
    return path
