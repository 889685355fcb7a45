"""Write the nodes of a scope's `torch.fx.Graph`: children as leaves, operations as calls, entries of lists by key."""

from __future__ import annotations

from typing import Any

from torch import fx

from simam_inject.dataflow.values import Frame, Recording, Value, keyed
from simam_inject.nested import Key, is_named_tuple

Values = list[tuple[tuple[Key, ...], Value]]
"""Tensors of one result, with the keys that lead to each; a bare tensor has none."""


def add_node(
    recording: Recording,
    frame: Frame,
    op: str,
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Values,
    path: str,
) -> fx.Node:
    """A call in the graph of the scope, and one node for each entry of what it returns."""
    assert frame.graph is not None
    node = frame.graph.create_node(op, target, args, kwargs)
    node.meta |= {"path": path, "scope": frame.path, "values": values}
    recording.nodes.setdefault(path, node)
    for keys, value in values:
        entry = _entry(recording, frame, node, keys, path)
        if keys:
            entry.meta["entry_of"] = node
        entry.meta["value"] = value
        frame.nodes[id(value)] = entry
    return node


def add_input(recording: Recording, frame: Frame, name: str, path: str, values: Values) -> None:
    """A parameter of the scope's forward, and one node for each entry of what it was given."""
    assert frame.graph is not None
    node = frame.graph.placeholder(name)
    node.meta |= {"path": path, "scope": frame.path, "kind": "input", "values": values}
    recording.nodes.setdefault(path, node)
    for keys, value in values:
        entry = _entry(recording, frame, node, keys, path)
        entry.meta |= {"kind": "input", "value": value}
        frame.nodes.setdefault(id(value), entry)


def known_node(frame: Frame, value: Value) -> fx.Node:
    """The node of a value in this scope; a new one for what is held in an attribute, a global or a closure."""
    assert frame.graph is not None
    node = frame.nodes.get(id(value))
    if node is None:
        node = frame.graph.create_node("get_attr", "outside")
        node.meta["value"] = value
        frame.nodes[id(value)] = node
    return node


def _entry(recording: Recording, frame: Frame, node: fx.Node, keys: tuple[Key, ...], path: str) -> fx.Node:
    assert frame.graph is not None
    entry = node
    for key in keys:
        entry = frame.graph.call_function(_get_entry, (entry, key))
    if keys:
        entry.meta |= {"path": keyed(path, keys), "scope": frame.path}
        recording.nodes.setdefault(keyed(path, keys), entry)
    return entry


def _get_entry(container: Any, key: Key) -> Any:
    """An entry of a list, tuple or dict that a graph holds."""
    return getattr(container, key) if isinstance(key, str) and is_named_tuple(container) else container[key]
