"""The three formats of an export: how each is written, opened, and read as a graph of operations."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from simam_inject.dataflow.example import Example
from simam_inject.errors import check_installed
from simam_inject.export.graph import GraphNode, GraphSimAM, Value, find_simams
from simam_inject.export.report import ExportError
from simam_inject.nested import tensors_of


@dataclass(frozen=True, slots=True)
class Artefact:
    """An exported file, opened."""

    simams: tuple[GraphSimAM, ...]
    run: Callable[[Example], list[Tensor]]
    """Returns the output tensors for an example."""


class Form(NamedTuple):
    """One format. Dimensions that are of another size in the second of the examples are written as dynamic."""

    write: Callable[[nn.Module, Sequence[Example], Path], None]
    read: Callable[[Path], Artefact]


def _dynamic_shapes(model: nn.Module, examples: Sequence[Example], names: Sequence[Any]) -> Any:
    """The `dynamic_shapes` of `torch.export.export`: where two examples differ; None for one example."""
    if len(examples) == 1:
        return None
    # Not `torch.export.AdditionalInputs`, which writes None for fixed dimensions: torch warns of it.
    bind = inspect.signature(model.forward).bind
    first, second = (dict(bind(*example.args, **example.kwargs).arguments) for example in examples)

    def differing(one: Any, two: Any) -> dict[int, Any] | None:
        if not isinstance(one, Tensor):
            return None
        return {dim: names[dim] for dim in range(one.dim()) if one.shape[dim] != two.shape[dim]}

    return pytree.tree_map(differing, first, second)


def _write_onnx(model: nn.Module, examples: Sequence[Example], path: Path) -> None:
    args, kwargs = examples[0].fresh()
    shapes = _dynamic_shapes(model, examples, ("batch", "channels", "height", "width", "depth"))
    program = torch.onnx.export(model, args, kwargs=kwargs, dynamic_shapes=shapes, dynamo=True, verbose=False)
    assert program is not None
    program.save(path, external_data=False)
    others = [file.name for file in path.parent.iterdir() if file.name.startswith(path.name) and file != path]
    if others:
        raise ExportError(f"the weights are too large for one ONNX file (torch wrote {others[0]} beside it); use .pt2")


def _read_onnx(path: Path) -> Artefact:
    import onnxruntime
    from onnxscript import ir

    def operand(value: Any) -> Value:
        constant = ir.convenience.get_const_tensor(value) if value is not None else None
        if constant is not None and constant.size == 1:
            return float(constant.numpy().item())
        return value.name if value is not None else None

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = ir.load(path).graph
    operations = {
        str(output.name): GraphNode(node.op_type.lower(), tuple(map(operand, node.inputs)), scope_of(node))
        for node in graph
        for output in node.outputs
    }

    def run(example: Example) -> list[Tensor]:
        names = [value.name for value in session.get_inputs()]
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in example.tensors]
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return Artefact(find_simams(operations, [value.name for value in graph.outputs]), run)


def scope_of(node: Any) -> str:
    """Path of the module that computes an ONNX node: the dynamo exporter writes it into its metadata.

    The older exporter, which ultralytics uses, names the node /layer1/layer1.0/conv2/simam/Sigmoid; "" for others.
    """
    scopes = re.findall("'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    if scopes:
        return str(scopes[-2]) if len(scopes) > 1 else ""
    path = ""
    for part in str(node.name).split("/")[1:-1]:
        path = part if part.startswith(f"{path}.") or not path else f"{path}.{part}"
    return path


def _write_program(model: nn.Module, examples: Sequence[Example], path: Path) -> None:
    args, kwargs = examples[0].fresh()
    shapes = _dynamic_shapes(model, examples, [torch.export.Dim.DYNAMIC] * 5)
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, path)


def _read_program(path: Path) -> Artefact:
    program = torch.export.load(path)
    module = program.module()
    if any(node.op == "get_attr" for node in program.graph.nodes):  # graphs of regions under autocast or a grad mode
        program = program.run_decompositions({})  # writes them out, without the paths of modules
    graph = program.graph
    operations = {node.name: _operation_of(node) for node in graph.nodes if node.op == "call_function"}
    simams = find_simams(operations, [node.name for node in graph.output_node().all_input_nodes])
    return Artefact(simams, lambda example: list(tensors_of(example.run(module))))


def _operation_of(node: fx.Node) -> GraphNode:
    operands: list[Value] = []
    for leaf in pytree.tree_leaves((node.args, node.kwargs)):
        if isinstance(leaf, fx.Node):
            operands.append(leaf.name)
        elif isinstance(leaf, (int, float)):
            operands.append(float(leaf))
    stack = list(node.meta.get("nn_module_stack", {}).values())  # (path, class) of each module, the innermost last
    return GraphNode(getattr(node.target, "_opname", ""), tuple(operands), str(stack[-1][0]) if stack else "")


def _write_trace(model: nn.Module, examples: Sequence[Example], path: Path) -> None:
    args, kwargs = examples[0].fresh()
    if kwargs:
        raise ExportError(f"a trace takes positional arguments only; {next(iter(kwargs))!r} is a keyword argument")
    trace: Any = torch.jit.trace(model, args, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
    torch.jit.save(trace, path)


def _read_trace(path: Path) -> Artefact:
    module: Any = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    for name, child in module.named_modules():
        for method in map(child._c._get_method, child._c._method_names()):
            for node in method.graph.findAllNodes("aten::sigmoid"):
                node.output().setDebugName(f"{name}@")  # where calls are written out, a number is added to the name
    graph, operations = module.inlined_graph, {}
    for node in graph.nodes():
        kind, operands = node.kind().removeprefix("aten::"), tuple(map(_operand_of, node.inputs()))
        for name in (output.debugName() for output in node.outputs()):
            operations[name] = GraphNode(kind, operands, name.rpartition("@")[0])
    simams = find_simams(operations, [value.debugName() for value in graph.outputs()])
    return Artefact(simams, lambda example: list(tensors_of(example.run(module))))


def _operand_of(value: Any) -> Value:
    constant = value.toIValue()
    if isinstance(constant, Tensor) and constant.numel() == 1:
        constant = constant.item()
    return float(constant) if isinstance(constant, (int, float)) else str(value.debugName())


FORMS = {
    ".onnx": Form(_write_onnx, _read_onnx),
    ".pt2": Form(_write_program, _read_program),
    ".torchscript": Form(_write_trace, _read_trace),
}
"""By suffix."""


def form_of(path: Path) -> Form:
    """The format of a file, by its suffix; an `ExportError` if it is unknown or lacks a package."""
    if path.suffix not in FORMS:
        raise ExportError(f"{path.name!r} has an unknown export format; the suffix must be one of {', '.join(FORMS)}")
    if path.suffix == ".onnx":
        check_installed("ONNX", "export", "onnx", "onnxruntime", "onnxscript", error=ExportError)
    return FORMS[path.suffix]


def read(path: Path) -> Artefact:
    """Open an exported file; an `ExportError` if it is of no known format, or damaged."""
    form = form_of(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # deprecations of the libraries
            return form.read(path)
    except Exception as error:  # of zip, JSON, protobuf and the runtimes
        is_dtype = any(word in str(error) for word in ("NOT_IMPLEMENTED", "Type Error"))  # ONNX Runtime's words
        hint = "; a .pt2 file takes every dtype" if is_dtype else ""
        raise ExportError(f"{path.name} cannot be opened as {path.suffix[1:]}: {error}{hint}") from None
