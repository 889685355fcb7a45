"""`.torchscript`: the trace of one forward by `torch.jit`, for runtimes that take nothing newer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.dataflow.example import Example
from simam_inject.export.gates import Graph, Operation
from simam_inject.export.records import ExportError
from simam_inject.verification.outputs import tensors_of

_KINDS = {
    "aten::add": "add",
    "aten::div": "div",
    "aten::mul": "mul",
    "aten::pow": "pow",
    "aten::sigmoid": "sigmoid",
    "aten::sqrt": "sqrt",
    "aten::to": "cast",
}


def write(model: nn.Module, example: Example, dynamic: tuple[str, ...], path: Path) -> None:  # noqa: ARG001
    """Trace and save. A trace has no fixed sizes of its own, so `dynamic` is left to the proof."""
    args, kwargs = example.fresh()
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    if bound.kwargs:
        raise ExportError(
            f"a trace takes positional arguments only; {next(iter(bound.kwargs))!r} is a keyword argument"
        )
    with _quiet():
        traced = torch.jit.trace(model, bound.args, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))


def read(path: Path) -> _ScriptArtefact:
    """Open a file."""
    try:
        with _quiet():
            return _ScriptArtefact(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ExportError(f"{path} cannot be opened by torch.jit.load: {error}") from None


class _ScriptArtefact:
    def __init__(self, module: Any) -> None:
        self.graph = _graph_of(module)
        self.module = module

    def run(self, example: Example) -> list[Tensor]:
        return list(tensors_of(example.run(self.module)))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations, and tracer warnings that the proof checks better
        yield


def _graph_of(module: Any) -> Graph:
    flat = _Flattening()
    return Graph(*flat.read(module))


class _Flattening:
    """Calls of submodules written out, with values named anew in each call."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.constants: dict[str, float] = {}
        self.calls = 0

    def read(self, module: Any) -> tuple[tuple[Operation, ...], dict[str, float], tuple[str, ...]]:
        results = self._walk(module, "", "forward", [])
        return tuple(self.operations), self.constants, tuple(results)

    def _walk(self, module: Any, path: str, method: str, given: list[str]) -> list[str]:
        """Note the operations of one call; return the names of what it returns."""
        graph = getattr(module, method).graph
        self.calls += 1
        prefix = f"{self.calls}:"
        names: dict[str, str] = {}
        modules: dict[str, tuple[Any, str]] = {}
        inputs = [value.debugName() for value in graph.inputs()]
        modules[inputs[0]] = (module, path)
        names.update(zip(inputs[1:], given, strict=False))

        def name_of(value: Any) -> str:
            name: str = value.debugName()
            return names.get(name, prefix + name)

        for node in graph.nodes():
            output: Any = next(iter(node.outputs()), None)
            if node.kind() == "prim::GetAttr" and node.input().debugName() in modules:
                owner, owner_path = modules[node.input().debugName()]
                child = getattr(owner, node.s("name"))
                if isinstance(child, torch.jit.ScriptModule):
                    modules[output.debugName()] = (child, f"{owner_path}.{node.s('name')}".lstrip("."))
            elif node.kind() == "prim::CallMethod" and node.inputsAt(0).debugName() in modules:
                child, child_path = modules[node.inputsAt(0).debugName()]
                arguments = [name_of(value) for value in list(node.inputs())[1:]]
                (result,) = self._walk(child, child_path, node.s("name"), arguments)
                names[output.debugName()] = result
            elif node.kind() == "prim::Constant":
                self._note_constant(name_of(output), output)
            else:
                kind = _KINDS.get(node.kind(), node.kind())
                values = tuple(name_of(value) for value in node.inputs())
                self.operations.append(Operation(kind, values, tuple(map(name_of, node.outputs())), path))
        return [name_of(value) for value in graph.outputs()]

    def _note_constant(self, name: str, value: Any) -> None:
        constant = value.toIValue()
        if isinstance(constant, Tensor) and constant.numel() == 1:
            constant = constant.item()
        if isinstance(constant, (int, float)):
            self.constants[name] = float(constant)
