"""Questions about the nodes of a traced graph, and about what they stand for."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import fx, nn


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


def containers_in(value: Any) -> Iterator[Any]:
    """Every list and dict of a nested structure."""
    if type(value) in (list, dict, OrderedDict):
        yield value
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from containers_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from containers_in(item)


def look_up(root: nn.Module, path: str) -> Any:
    """The attribute at a dotted path, past `nn.Module.__getattr__`, which fx has patched to make proxies."""
    found: Any = root
    for name in path.split("."):
        for table in ("_modules", "_parameters", "_buffers"):
            if name in found.__dict__[table]:
                found = found.__dict__[table][name]
                break
        else:
            found = found.__dict__[name]
    return found
