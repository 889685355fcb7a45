"""Examples without a batch dimension: torch's own layers take them, and C, H, W would be read as N, C, L."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

from simam_inject.tracing.scopes import Trace

_LAYER = re.compile(r"(?:Lazy)?(?:Conv|ConvTranspose|BatchNorm|InstanceNorm|\w+Pool)([123])d")
_FUNCTION = re.compile(r"(?:conv|conv_transpose|\w+_pool)([123])d")


def unbatched_ranks(trace: Trace) -> dict[int, str]:
    """Ranks of maps that came without a batch dimension, each with a sentence that says where one was seen."""
    found: dict[int, str] = {}
    for what, spatial, value in _layers(trace):
        if isinstance(value, torch.Tensor) and value.dim() == spatial + 1 > 2:
            found.setdefault(
                value.dim(),
                f"has no batch dimension in this example: {what} computes {tuple(value.shape)}. "
                "Give example inputs with one, e.g. x[None]",
            )
    return found


def _layers(trace: Trace) -> Iterator[tuple[str, int, object]]:
    """Every convolution, norm and pooling of torch that ran: its name, its spatial dimensions, what it returned."""
    for calls in trace.calls.values():
        spatial = _spatial(type(calls[0].module))
        if spatial:
            yield trace.path_of.get(id(calls[0].module), ""), spatial, calls[0].output
    for scope in trace.scopes.values():
        for node in scope.body.graph.nodes if scope.body else ():
            if node.op == "call_function":
                name = getattr(node.target, "__name__", "")
                match = _FUNCTION.fullmatch(name)
                if match is not None:
                    yield f"{name} in {scope.path or 'the model'}", int(match[1]), node.meta.get("value")


def _spatial(kind: type[nn.Module]) -> int:
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules"):
            match = _LAYER.fullmatch(base.__name__)
            return int(match[1]) if match is not None else 0
    return 0
