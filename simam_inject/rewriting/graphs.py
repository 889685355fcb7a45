"""Edits of one graph: where a value and its readers are found, and SimAM calls put in between.

A module can have several bodies that stand for one another: the same forward in train mode, `forward_fuse` after the
norm was folded into the conv, `forward_split` for an exporter. A site of `forward` is found in them by what computes it
and who reads it (see `alignment`):

* computed here in the same way, and read by the same children -> after it;
* computed by a child that is gone (folded away), but read by the same children -> before those;
* computed here, but read by other children than before, or not to be told from another value -> this body cannot hold
  the site (`Lost`);
* neither computed nor read here -> this body does not concern the site.

A part (`forward_features`, which `forward` calls) holds what it computes; who reads it may be in another part.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass

import torch
from torch import fx

from simam_inject.discovery.naming import value_names
from simam_inject.rewriting.alignment import align, is_alike, operands
from simam_inject.rewriting.records import Edit


class Lost(Exception):
    """A body computes the attended value in another way, so the site cannot be put into it."""


class Role(enum.Enum):
    """What a body is to `forward`."""

    WHOLE = "it stands for all of it, so every edit must be in it"
    OTHER = "it takes the same and returns something else; edits that do not concern it are left out"
    PART = "forward calls it, on values of its own"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one edit goes in one graph."""

    edit: Edit
    value: fx.Node
    readers: tuple[fx.Node, ...]
    """The nodes that get the attended value instead."""


def find_places(graph: fx.Graph, edits: tuple[Edit, ...], reference: fx.Graph, role: Role) -> tuple[Place, ...]:
    """Find the edits, named after `reference` (the graph of `forward`), in `graph`.

    Raises:
        Lost: an edit concerns this graph but cannot be put into it.
    """
    names = value_names(reference)
    reference_nodes = {name: node for node, name in names.items()}
    twins = align(reference, graph, same_inputs=role is not Role.PART)
    places = []
    for edit in edits:
        if not edit.value:
            found = None if role is Role.PART else _find_result(edit, graph)
        elif edit.value not in reference_nodes:
            raise Lost(f"{edit.value} is not computed")
        else:
            value, reader = reference_nodes[edit.value], reference_nodes.get(edit.reader or "")
            found = _Search(edit, graph, value, reader, twins, names, role).find()
        if found is not None:
            places.append(found)
        elif role is Role.WHOLE:
            raise Lost(f"{edit.value} is not computed")
    return tuple(places)


def _find_result(edit: Edit, graph: fx.Graph) -> Place:
    output = next(reversed(graph.nodes))
    result = output.args[0]
    if not isinstance(result, fx.Node) or not isinstance(result.meta.get("value"), torch.Tensor):
        raise Lost("it does not return one tensor")
    return Place(edit, result, (output,))


@dataclass(frozen=True, slots=True)
class _Search:
    """Where one edit of a value of the reference goes in another graph, or in the reference itself."""

    edit: Edit
    graph: fx.Graph
    original: fx.Node
    reader: fx.Node | None
    twins: dict[fx.Node, fx.Node]
    names: dict[fx.Node, str]
    role: Role

    def find(self) -> Place | None:
        value, name = self.twins.get(self.original), self.edit.value
        if self.edit.reader is not None and (self.reader is None or self.reader not in self.original.users):
            raise Lost(f"{self.edit.reader} does not read {name}")
        if value is None:
            return self._find_where_read()
        if value is not self.original:
            self._check_readers(value)
        if self.reader is None:
            return Place(self.edit, value, tuple(value.users))
        reader = self.twins.get(self.reader)
        if reader is None and self.role is Role.PART:
            return None
        if reader is None or value not in reader.all_input_nodes:
            raise Lost(f"{self.edit.reader} does not read {name}")
        if reader.meta.get("in_place") and any(reader < user for user in value.users):
            raise Lost(f"{self.edit.reader} changes {name} in place, and others read it afterwards")
        return Place(self.edit, value, (reader,))

    def _readers(self) -> list[fx.Node]:
        """Whoever of the reference must read the attended value: the one named, else every child that does."""
        if self.reader is not None:
            return [self.reader]
        return [user for user in self.original.users if user.op == "call_module"]

    def _check_readers(self, value: fx.Node) -> None:
        for reader in self._readers():
            twin = self.twins.get(reader)
            if twin is None and self.role is not Role.PART:
                raise Lost(f"{self.edit.value} is no longer read by {self.names.get(reader, reader.name)}")
            if twin is not None and value not in twin.all_input_nodes:
                raise Lost(f"{self.edit.value} goes elsewhere")

    def _find_where_read(self) -> Place | None:
        name = self.edit.value
        taken = set(self.twins.values())
        if any(is_alike(node, self.original) and node not in taken for node in self.graph.nodes):
            raise Lost(f"which value is {name} cannot be told: it is computed from others")
        readers = [(reader, self.twins[reader]) for reader in self._readers() if reader in self.twins]
        if not readers or (self.role is Role.PART and self.reader is None):
            return None  # what another part computed was attended there
        sources = {source for _, twin in readers for source in twin.all_input_nodes if source.op != "get_attr"}
        if self.role is Role.PART:
            sources = self._read_instead(*readers[0])
        if len(sources) != 1:
            raise Lost(f"{name} is not computed, and its readers read other values as well")
        return Place(self.edit, sources.pop(), tuple(twin for _, twin in readers))

    def _read_instead(self, reader: fx.Node, twin: fx.Node) -> set[fx.Node]:
        """What a part is given, where the whole reads the value."""
        pairs = zip(operands(reader), operands(twin), strict=False)
        return {theirs for ours, theirs in pairs if ours is self.original and theirs.op == "placeholder"}


def insert(
    graph: fx.Graph, edits: tuple[Edit, ...], reference: fx.Graph, role: Role = Role.WHOLE
) -> tuple[fx.Graph, tuple[Edit, ...]]:
    """A copy of `graph` with the SimAM calls in it, and the edits it holds. See `find_places` for the arguments."""
    places = find_places(graph, edits, reference, role)
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
    for place in sorted(places, key=lambda place: not place.edit.value):
        value = twins[place.value] if place.edit.value else output.all_input_nodes[0]
        anchor = nodes[last_parameter] if value.op == "placeholder" else value
        readers = [twins.get(reader, output) for reader in place.readers]
        before = place.edit.reader is not None or not place.edit.value
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
