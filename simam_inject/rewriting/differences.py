"""The generated forward next to the traced one, for people to read."""

from __future__ import annotations

import difflib

from torch import nn

from simam_inject.rewriting.code import body_source, boundary_source
from simam_inject.rewriting.graphs import insert
from simam_inject.rewriting.surgeon import Operation, split
from simam_inject.tracing.recording import Call
from simam_inject.tracing.scopes import active_method
from simam_inject.tracing.tracer import trace


def forward_difference(module: nn.Module, call: Call, operation: Operation) -> str:
    """Unified diff from the traced forward of a module in its stock class to the one it gets."""
    inner, boundary = split(module, operation.specification.edits)
    name = active_method(module)
    if boundary is not None and not inner:
        return boundary_source(name, getattr(type(module), name), boundary.child).text.rstrip("\n")
    body = trace(module, call, name)
    before = body_source(name, body, body.graph).text
    graph, _ = insert(body.graph, inner, body.graph)
    after = body_source(name, body, graph).text
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "traced", "with SimAM", lineterm="", n=1)
    return "\n".join(lines)
