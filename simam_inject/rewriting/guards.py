"""What a generated forward checks before it runs: that everything its graph holds as a constant is still so."""

from __future__ import annotations

import builtins
import inspect
import math
from collections.abc import Container, Iterator
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simam_inject.errors import InjectError
from simam_inject.tracing.questions import classes, module_at
from simam_inject.tracing.signature import Argument
from simam_inject.tracing.tracer import Body

_MODULES = ("self.", "getattr(")
"""How the expression of a module begins."""


def guard_lines(
    body: Body, objects: dict[str, Any], served: Container[tuple[str, Any]] = (), defaults: dict[str, Any] | None = None
) -> list[str]:
    """Lines that refuse to run where the graph's constants are no longer true.

    Args:
        body: what was traced.
        served: arguments of other classes, by name and classes, that another body serves.
        defaults: extra keywords that change nothing, with these values.
        objects: what the lines name; those that they need are added.
    """
    lines: list[str] = []
    if body.guards:
        names = ", ".join(module_at(path) for path, _ in body.guards)
        values = ", ".join(literal(value, f"_value_{index}", objects) for index, (_, value) in enumerate(body.guards))
        told = ", ".join(path for path, _ in body.guards)
        plural = "attribute" if len(body.guards) == 1 else "one of the attributes"
        lines += _refusal(f"({names},) != ({values},)", f"{plural} {told}")
    if body.lengths:
        counted = " or ".join(f"len({module_at(path)}) != {length}" for path, length in body.lengths)
        lines += _refusal(counted, f"the number of modules in {', '.join(path for path, _ in body.lengths)}")
    if body.missing:
        appeared = " or ".join(f"hasattr({_owner(path)}, {path.rpartition('.')[2]!r})" for path in body.missing)
        lines += _refusal(appeared, f"the presence of attribute {', '.join(body.missing)}")
    for index, (space, name, value) in enumerate(body.surroundings):
        objects[f"_fixed_globals_{index}"] = space
        condition = f"_fixed_globals_{index}.get({name!r}) != {literal(value, f'_value_global_{index}', objects)}"
        lines += _refusal(condition, f"the global {name}")
    for what, kinds, answer in body.classes:
        if (what, kinds) in served:
            continue
        condition = f"isinstance({what}, {class_names(kinds, objects)})"
        told = f"the class of {what.removeprefix('self.')}" if what.startswith(_MODULES) else f"argument {what}"
        lines += _refusal(f"not {condition}" if answer else condition, told)
    for argument in body.arguments:
        objects["_Tensor"] = torch.Tensor
        conditions = list(_argument_conditions(argument, body, objects))
        if conditions == [argument.name] and defaults and argument.kind is inspect.Parameter.VAR_KEYWORD:
            objects["_fixed_defaults"] = tuple(defaults.items())
            conditions = [f"{argument.name} and not {argument.name}.items() <= dict(_fixed_defaults).items()"]
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
                    f"if type({module_at(norm)}) is _Identity:",
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


def _owner(path: str) -> str:
    return module_at(path.rpartition(".")[0]) if "." in path else "self"


def class_names(kinds: Any, objects: dict[str, Any]) -> str:
    """Source of the second argument of `isinstance`."""
    names = []
    for kind in classes(kinds):
        if getattr(builtins, kind.__name__, None) is kind:
            names.append(kind.__name__)
            continue
        same = [name for name, item in objects.items() if item is kind and name.startswith("_fixed_class_")]
        names.append(same[0] if same else f"_fixed_class_{len(objects)}_{kind.__name__}")
        objects[names[-1]] = kind
    return names[0] if len(names) == 1 else f"({', '.join(names)})"


def _argument_conditions(argument: Argument, body: Body, objects: dict[str, Any]) -> Iterator[str]:
    name, value = argument.name, argument.value
    if argument.is_proxied:
        if argument.default is None and value is not None:
            yield f"{name} is None"
        is_own = argument.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if is_own and isinstance(value, (list, tuple, dict)):
            yield _another_kind(name, value)
        yield from _structure_conditions(name, value)
        yield from _tensor_conditions(name, value, kinds=name in body.kinds, ranks=name in body.ranks)
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
        elif isinstance(item, (list, tuple, dict)):
            yield _another_kind(part, item)
            yield from _structure_conditions(part, item)


def _another_kind(name: str, value: Any) -> str:
    kind = next(kind for kind in (list, tuple, dict) if isinstance(value, kind))
    return f"not isinstance({name}, {kind.__name__})"


def _tensor_conditions(name: str, value: Any, *, kinds: bool, ranks: bool) -> Iterator[str]:
    """What the forward decided by classes and ranks. Whoever traces the generated forward passes no tensors."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _tensor_conditions(f"{name}[{key!r}]", item, kinds=kinds, ranks=ranks)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensor_conditions(f"{name}[{index}]", item, kinds=kinds, ranks=ranks)
    elif isinstance(value, torch.Tensor):
        if kinds:
            yield f"not isinstance({name}, _Tensor)"
        if ranks:
            yield f"isinstance({name}, _Tensor) and {name}.dim() != {value.dim()}"


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
