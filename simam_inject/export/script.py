"""`.torchscript`: the trace of one forward by `torch.jit`, for runtimes that take nothing newer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.graph import Artefact, Graph, Operation, Value, find_gates
from simam_inject.export.records import ExportError
from simam_inject.verification.outputs import tensors_of


def write(model: nn.Module, examples: Sequence[Example], path: Path) -> None:
    """Trace and save. A trace has no fixed sizes of its own, so whether they may vary is left to the proof."""
    args, kwargs = examples[0].fresh()
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    if bound.kwargs:
        raise ExportError(
            f"a trace takes positional arguments only; {next(iter(bound.kwargs))!r} is a keyword argument"
        )
    traced = torch.jit.trace(model, bound.args, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path))


def read(path: Path) -> Artefact:
    """Open a file."""
    module: Any = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    program = _Program()
    results = program.call(module, "", "forward", [])
    return Artefact(find_gates(program.graph, results), lambda example: list(tensors_of(example.run(module))))


class _Program:
    """Calls of submodules written out, with values named anew in each call.

    torch can write them out as well (`inlined_graph`), but then without the paths of the modules.
    """

    def __init__(self) -> None:
        self.graph: Graph = {}
        self.calls = 0

    def call(self, module: Any, path: str, method: str, arguments: list[Value]) -> list[Value]:
        """Add the operations of one call to the graph; return the names of what it returns."""
        graph = getattr(module, method).graph
        this, *parameters = (value.debugName() for value in graph.inputs())
        names: dict[str, Value] = dict(zip(parameters, arguments, strict=False))
        modules: dict[str, tuple[Any, str]] = {this: (module, path)}
        self.calls += 1
        prefix = f"{self.calls}:"

        def values_of(values: Any) -> list[Value]:
            return [names.get(value.debugName(), prefix + value.debugName()) for value in values]

        for node in graph.nodes():
            inputs, outputs = list(node.inputs()), [output.debugName() for output in node.outputs()]
            owner, owner_path = modules.get(inputs[0].debugName(), (None, "")) if inputs else (None, "")
            if node.kind() == "prim::GetAttr" and owner is not None:
                name = node.s("name")
                if isinstance(child := getattr(owner, name), torch.jit.ScriptModule):
                    modules[outputs[0]] = child, f"{owner_path}.{name}".lstrip(".")
            elif node.kind() == "prim::CallMethod" and owner is not None:
                names[outputs[0]] = self.call(owner, owner_path, node.s("name"), values_of(inputs[1:]))[0]
            elif node.kind() == "prim::Constant":
                value = node.output().toIValue()
                value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
                if isinstance(value, (int, float)):
                    names[outputs[0]] = float(value)
            else:
                operation = Operation(node.kind().removeprefix("aten::"), values_of(inputs), path)
                self.graph |= {prefix + name: operation for name in outputs}
        return values_of(graph.outputs())
