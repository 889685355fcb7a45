"""What a generated forward checks before it runs: that everything its graph holds as a constant is still so."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simam_inject.errors import InjectError
from simam_inject.tracing.signature import Argument
from simam_inject.tracing.tracer import Body


def guard_lines(body: Body, objects: dict[str, Any]) -> list[str]:
    """Lines that refuse to run where the graph's constants are no longer true.

    Args:
        objects: what the lines name; those that they need are added.
    """
    lines: list[str] = []
    if body.guards:
        names = ", ".join(_reference(path) for path, _ in body.guards)
        values = ", ".join(literal(value, f"_value_{index}", objects) for index, (_, value) in enumerate(body.guards))
        told = ", ".join(path for path, _ in body.guards)
        plural = "attribute" if len(body.guards) == 1 else "one of the attributes"
        lines += _refusal(f"({names},) != ({values},)", f"{plural} {told}")
    if body.lengths:
        counted = " or ".join(f"len({_reference(path)}) != {length}" for path, length in body.lengths)
        lines += _refusal(counted, f"the number of modules in {', '.join(path for path, _ in body.lengths)}")
    if body.missing:
        appeared = " or ".join(f"hasattr({_owner(path)}, {path.rpartition('.')[2]!r})" for path in body.missing)
        lines += _refusal(appeared, f"the presence of attribute {', '.join(body.missing)}")
    for argument in body.arguments:
        conditions = list(_argument_conditions(argument, objects))
        if conditions:
            lines += _refusal(" or ".join(conditions), f"argument {argument.name}")
    return lines


def folding_lines(module: nn.Module, graph: fx.Graph, objects: dict[str, Any]) -> list[str]:
    """Lines that refuse to run once a norm that reads an attended value was folded into what computes it.

    Folding (`torch.ao.quantization.fuse_modules` and its like) replaces the norm by an identity; with SimAM in between
    the outputs would be others.

    Args:
        module: the one whose forward the graph is, SimAM calls included.
        objects: what the lines name; those that they need are added.
    """
    lines: list[str] = []
    for node in graph.nodes:
        if node.op != "call_module" or not _is_batch_norm(module, str(node.target)):
            continue
        for attended in node.all_input_nodes:
            source = attended.args[0] if attended.op == "call_module" and _is_attention(str(attended.target)) else None
            if isinstance(source, fx.Node) and source.op == "call_module":
                objects["_Identity"], objects["_refuse_folded"] = nn.Identity, refuse_folded
                norm, value = str(node.target), str(source.target)
                lines += [
                    f"if type({_reference(norm)}) is _Identity:",
                    f"    _refuse_folded(self, {norm!r}, {value!r})",
                ]
    return lines


def refuse_folded(module: nn.Module, norm: str, value: str) -> NoReturn:
    """Called by a generated forward whose norm is gone."""
    raise InjectError(
        f"{type(module).__name__}: {norm} was folded into {value}, but SimAM stands between the two, so the outputs "
        f"would be wrong. Fold before inject, leave this pair out, or put SimAM after {norm}."
    )


def _is_batch_norm(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), _BatchNorm)
    except AttributeError:
        return False


def _is_attention(path: str) -> bool:
    return path == "simam" or path.startswith("simam_")


def _refusal(condition: str, what: str) -> list[str]:
    return [f"if {condition}:", f"    _refuse_stale(self, {what!r})"]


def _reference(path: str) -> str:
    """`self.conv.stride`, `getattr(self.blocks, '0').scale`."""
    expression = "self"
    for name in path.split("."):
        expression = f"{expression}.{name}" if name.isidentifier() else f"getattr({expression}, {name!r})"
    return expression


def _owner(path: str) -> str:
    return _reference(path.rpartition(".")[0]) if "." in path else "self"


def _argument_conditions(argument: Argument, objects: dict[str, Any]) -> Iterator[str]:
    name, value = argument.name, argument.value
    if argument.is_proxied:
        if argument.default is None and value is not None:
            yield f"{name} is None"
        yield from _structure_conditions(name, value)
    elif argument.kind is inspect.Parameter.VAR_POSITIONAL or argument.kind is inspect.Parameter.VAR_KEYWORD:
        yield f"{name} != {literal(value, f'_fixed_{name}', objects)}" if value else name
    elif value is None or isinstance(value, bool):
        yield f"{name} is not {value!r}"
    else:
        yield f"{name} != {literal(value, f'_fixed_{name}', objects)}"


def _structure_conditions(name: str, value: Any) -> Iterator[str]:
    """Containers of the caller are taken apart by position and by key, and what is None or text in them is baked."""
    if isinstance(value, dict):
        yield f"list({name}) != {list(value)!r}"
        parts = [(f"{name}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        yield f"len({name}) != {len(value)}"
        parts = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    else:
        return
    for part, item in parts:
        if item is None:
            yield f"{part} is not None"
        elif isinstance(item, torch.Tensor):
            yield f"{part} is None"
        elif isinstance(item, str):
            yield f"{part} != {item!r}"
        else:
            yield from _structure_conditions(part, item)


def literal(value: Any, name: str, objects: dict[str, Any]) -> str:
    """The value as source where that is exact, else a name for the object itself."""
    if _is_exact(value):
        return repr(value)
    objects[name] = value
    return name


def _is_exact(value: Any) -> bool:
    kind = type(value)
    if kind in (list, tuple):
        return all(map(_is_exact, value))
    if kind is dict:
        return all(map(_is_exact, value)) and all(map(_is_exact, value.values()))
    return value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value))
