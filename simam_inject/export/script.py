"""`.torchscript`: the trace of one forward by `torch.jit`, for runtimes that take nothing newer."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.gates import Artefact, Graph, Operation
from simam_inject.export.records import ExportError
from simam_inject.verification.outputs import tensors_of


def write(model: nn.Module, example: Example, dynamic: tuple[str, ...], path: Path) -> None:  # noqa: ARG001
    """Trace and save. A trace has no fixed sizes of its own, so `dynamic` is left to the proof."""
    args, kwargs = example.fresh()
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
    flattening = _Flattening()
    results = flattening.call(module, "", "forward", [])
    graph = Graph(flattening.operations, flattening.constants, results)
    return Artefact(graph, lambda example: list(tensors_of(example.run(module))))


class _Flattening:
    """Calls of submodules written out, with values named anew in each call."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.constants: dict[str, float] = {}
        self.calls = 0

    def call(self, module: Any, path: str, method: str, given: list[str]) -> list[str]:
        """Note the operations of one call; return the names of what it returns."""
        graph = getattr(module, method).graph
        self.calls += 1
        call = self.calls
        this, *arguments = (value.debugName() for value in graph.inputs())
        names: dict[str, str] = dict(zip(arguments, given, strict=False))
        modules: dict[str, tuple[Any, str]] = {this: (module, path)}

        def name_of(value: Any) -> str:
            return names.get(value.debugName(), f"{call}:{value.debugName()}")

        for node in graph.nodes():
            kind, inputs, outputs = node.kind(), list(node.inputs()), list(node.outputs())
            owner, owner_path = modules.get(inputs[0].debugName(), (None, "")) if inputs else (None, "")
            if kind == "prim::GetAttr" and owner is not None:
                name = node.s("name")
                if isinstance(child := getattr(owner, name), torch.jit.ScriptModule):
                    modules[outputs[0].debugName()] = child, f"{owner_path}.{name}".lstrip(".")
            elif kind == "prim::CallMethod" and owner is not None:
                (result,) = self.call(owner, owner_path, node.s("name"), [name_of(value) for value in inputs[1:]])
                names[outputs[0].debugName()] = result
            elif kind == "prim::Constant":
                self._note_constant(name_of(outputs[0]), outputs[0].toIValue())
            else:
                values = [name_of(value) for value in inputs]
                self.operations.append(
                    Operation(kind.removeprefix("aten::"), values, [name_of(value) for value in outputs], path)
                )
        return [name_of(value) for value in graph.outputs()]

    def _note_constant(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, (int, float)):
            self.constants[name] = float(value)
