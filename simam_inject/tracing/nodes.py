"""Questions about the nodes of a traced graph."""

from __future__ import annotations

import operator

from torch import fx


def arguments_behind(node: fx.Node) -> set[str]:
    """Names of the arguments that a value was computed from."""
    found: set[str] = set()
    waiting, seen = [node], {node}
    while waiting:
        step = waiting.pop()
        if step.op == "placeholder":
            found.add(str(step.target))
        new = [source for source in step.all_input_nodes if source not in seen]
        seen.update(new)
        waiting.extend(new)
    return found


def expression_of(node: fx.Node) -> str | None:
    """`x`, or `x[0]['mask']` for a part of an argument; None for what was computed."""
    if node.op == "placeholder":
        return str(node.target)
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    owner, key = node.args
    if not isinstance(owner, fx.Node) or not isinstance(key, (int, str)):
        return None
    written = expression_of(owner)
    return None if written is None else f"{written}[{key!r}]"


def drop_unused_reads(graph: fx.Graph) -> None:
    """Remove the nodes that only read something, of a structure or of the module, and that nobody used."""
    for node in reversed(graph.nodes):
        is_read = node.op == "get_attr" or (node.op == "call_function" and node.target in (operator.getitem, getattr))
        if is_read and not node.users:
            graph.erase_node(node)
