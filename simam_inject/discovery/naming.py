"""Names of the values of one scope. The same graph always gives the same names, so a name can be stored."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx

from simam_inject.discovery.kinds import node_kind


def value_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Name every tensor node and every module call: `conv2`, `relu[2]` (second call), `add`, `x` (a parameter).

    A child owns its name. A parameter of the same name is `relu_input`; an operation whose kind is the name of a child
    or of a parameter is `relu_op`, so that `[2]` counts the calls of the child, or the operations, and never both.
    """
    named = [node for node in graph.nodes if _has_name(node)]
    children = {str(node.target) for node in named if node.op == "call_module"}
    parameters = {str(node.target) for node in named if node.op == "placeholder"}
    names: dict[fx.Node, str] = {}
    seen: Counter[str] = Counter()
    for node in named:
        if node.op == "call_module":
            name = str(node.target)
        elif node.op == "placeholder":
            name = _free(str(node.target), "_input", children)
        else:
            name = _free(node_kind(node), "_op", children | parameters)
        seen[name] += 1
        names[node] = name if seen[name] == 1 else f"{name}[{seen[name]}]"
    return names


def _has_name(node: fx.Node) -> bool:
    if node.op in ("output", "get_attr"):
        return False
    return node.op == "call_module" or isinstance(node.meta.get("value"), torch.Tensor)


def _free(name: str, suffix: str, taken: set[str]) -> str:
    while name in taken:
        name += suffix
    return name


def join(scope: str, name: str) -> str:
    """Dotted path of a value named `name` in the scope at path `scope`."""
    return f"{scope}.{name}" if scope and name else scope or name
