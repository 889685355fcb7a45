"""Edits of one graph: where a value and its readers are found, and SimAM calls put in between.

A module can have several bodies that stand for one another: the same forward in train mode, `forward_fuse` after the
norm was folded into the conv, `forward_split` for an exporter. A site of `forward` is found in them by what computes it
and who reads it:

* computed here by the same child or operation, and read by the same children -> after it;
* computed by a child that is gone (folded away), but read by the same children -> before those;
* computed here, but read by other children than before -> this body cannot hold the site (`Lost`);
* neither computed nor read here -> this body does not concern the site.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import fx

from simam_inject.discovery.naming import value_names
from simam_inject.rewriting.records import Edit


class Lost(Exception):
    """A body computes the attended value in another way, so the site cannot be put into it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one edit goes in one graph."""

    edit: Edit
    value: fx.Node
    readers: tuple[fx.Node, ...]
    """The nodes that get the attended value instead."""


def find_places(graph: fx.Graph, edits: tuple[Edit, ...], reference: fx.Graph, *, complete: bool) -> tuple[Place, ...]:
    """Find the edits, named after `reference` (the graph of `forward`), in `graph`.

    Args:
        complete: the graph stands for the whole forward, so every edit must be in it. Otherwise (`forward_head`) the
            edits that do not concern it are left out.

    Raises:
        Lost: an edit concerns this graph but cannot be put into it.
    """
    nodes = _by_name(graph)
    names = value_names(reference)
    reference_nodes = {name: node for node, name in names.items()}
    places = []
    for edit in edits:
        if edit.value not in reference_nodes:
            raise Lost(f"{edit.value} is not computed")
        place = _find_place(edit, nodes, reference_nodes[edit.value], names)
        if place is not None:
            places.append(place)
        elif complete:
            raise Lost(f"{edit.value} is not computed")
    return tuple(places)


def _find_place(edit: Edit, nodes: dict[str, fx.Node], original: fx.Node, names: dict[fx.Node, str]) -> Place | None:
    value = nodes.get(edit.value)
    wanted = [user for user in original.users if edit.reader is None or names.get(user) == edit.reader]
    module_readers = [names[user] for user in wanted if user.op == "call_module"]
    found = [nodes[name] for name in module_readers if name in nodes]
    if value is not None and original is not value:
        missing = [name for name in module_readers if name not in nodes]
        if missing:
            raise Lost(f"{edit.value} is no longer read by {missing[0]}")
        if any(value not in reader.all_input_nodes for reader in found):
            raise Lost(f"{edit.value} goes elsewhere")
    if value is not None:
        if edit.reader is None:
            return Place(edit, value, tuple(value.users))
        reader = nodes.get(edit.reader)
        if reader is None or value not in reader.all_input_nodes:
            raise Lost(f"{edit.reader} does not read {edit.value}")
        if reader.meta.get("in_place") and any(reader < user for user in value.users):
            raise Lost(f"{edit.reader} changes {edit.value} in place, and others read it afterwards")
        return Place(edit, value, (reader,))
    if not found:
        return None
    sources = {source for reader in found for source in reader.all_input_nodes if source.op != "get_attr"}
    if len(sources) != 1:
        raise Lost(f"{edit.value} is not computed, and its readers read other values as well")
    return Place(edit, sources.pop(), tuple(found))


def insert(
    graph: fx.Graph, edits: tuple[Edit, ...], reference: fx.Graph, *, complete: bool = True
) -> tuple[fx.Graph, tuple[Edit, ...]]:
    """A copy of `graph` with the SimAM calls in it, and the edits it holds. See `find_places` for the arguments."""
    places = find_places(graph, edits, reference, complete=complete)
    copy = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    result = copy.graph_copy(graph, twins)
    copy.output(result)
    output = next(reversed(copy.nodes))
    for original in graph.nodes:
        if original in twins:
            twins[original].meta["value"] = original.meta.get("value")
    last_parameter = max((i for i, node in enumerate(copy.nodes) if node.op == "placeholder"), default=-1)
    nodes = list(copy.nodes)
    for place in places:
        value = twins[place.value]
        anchor = nodes[last_parameter] if value.op == "placeholder" else value
        readers = [twins.get(reader, output) for reader in place.readers]
        before = place.edit.reader is not None
        with copy.inserting_before(readers[0]) if before else copy.inserting_after(anchor):
            attended = copy.call_module(place.edit.child, (value,))
        attended.meta["value"] = value.meta.get("value")
        for reader in readers:
            reader.replace_input_with(value, attended)
    copy.lint()
    return copy, tuple(place.edit for place in places)


def fingerprint(graph: fx.Graph) -> str:
    """SHA-256 of what the graph computes: operations, children, constants and their wiring."""
    lines = []
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
        lines.append(f"{node.name} {node.op} {target} {_told(node.args)} {_told(node.kwargs)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _told(argument: object) -> str:
    if isinstance(argument, fx.Node):
        return argument.name
    if isinstance(argument, dict):
        return "{" + ",".join(f"{key}:{_told(item)}" for key, item in argument.items()) + "}"
    if isinstance(argument, (list, tuple)):
        return "(" + ",".join(_told(item) for item in argument) + ")"
    if isinstance(argument, slice):
        return f"{_told(argument.start)}:{_told(argument.stop)}:{_told(argument.step)}"
    if callable(argument):
        return getattr(argument, "__qualname__", type(argument).__name__)
    return repr(argument)


def _by_name(graph: fx.Graph) -> dict[str, fx.Node]:
    return {name: node for node, name in value_names(graph).items()}
