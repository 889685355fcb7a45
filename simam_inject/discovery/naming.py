"""Names of the values of one scope. The same graph always gives the same names, so a name can be stored."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx

from simam_inject.discovery.kinds import node_kind


def value_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Name every tensor node and every module call: `conv2`, `relu[2]` (second call), `add`, `x` (a parameter)."""
    names: dict[fx.Node, str] = {}
    seen: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "output" or node.op == "get_attr":
            continue
        if node.op != "call_module" and not isinstance(node.meta.get("value"), torch.Tensor):
            continue
        name = str(node.target) if node.op in ("call_module", "placeholder") else node_kind(node)
        seen[name] += 1
        names[node] = name if seen[name] == 1 else f"{name}[{seen[name]}]"
    return names


def join(scope: str, name: str) -> str:
    """Dotted path of a value named `name` in the scope at path `scope`."""
    return f"{scope}.{name}" if scope and name else scope or name
