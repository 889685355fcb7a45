"""Which node of one body is which of another: matched by structure, since a name only counts what came before.

A child that each body calls once is the same in both, and so is what they read and are given. From there on a node is
matched by its operation and its operands, and where those differ (a body splits in another way, adds noise first) by
its readers. What is not matched one to one is not matched at all.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import fx

_Key = tuple[Any, ...]


def align(reference: fx.Graph, other: fx.Graph, *, same_inputs: bool) -> dict[fx.Node, fx.Node]:
    """The twin in `other` of each node of `reference` that has one, results included.

    Args:
        same_inputs: both take and return the same: parameters match by name, and results.
    """
    if reference is other:
        return {node: node for node in reference.nodes}
    return _Alignment(reference, other, same_inputs=same_inputs).twins


def is_alike(one: fx.Node, other: fx.Node) -> bool:
    """The same operation or child, on whatever values."""
    return _kind(one) == _kind(other)


class _Alignment:
    def __init__(self, reference: fx.Graph, other: fx.Graph, *, same_inputs: bool) -> None:
        self.twins: dict[fx.Node, fx.Node] = {}
        self._taken: set[fx.Node] = set()
        self._ours, self._theirs = _by_kind(reference), _by_kind(other)
        self._keys = {node: _key(node, None) for node in other.nodes}
        for kind, nodes in self._ours.items():
            if kind[0] in ("call_module", "get_attr") or (same_inputs and kind[0] in ("placeholder", "output")):
                self._pair(nodes, self._theirs.get(kind, []), only=1)
        before = -1
        while before < len(self.twins):
            before = len(self.twins)
            for node in reference.nodes:
                self._match_by_operands(node)
            for node in reversed(reference.nodes):
                self._match_by_readers(node)

    def _pair(self, ours: list[fx.Node], theirs: list[fx.Node], only: int | None = None) -> None:
        if len(ours) == len(theirs) and (only is None or len(ours) == only):
            self.twins.update(zip(ours, theirs, strict=True))
            self._taken.update(theirs)

    def _match_by_operands(self, node: fx.Node) -> None:
        inputs = node.all_input_nodes
        if not self._can_match(node) or any(operand not in self.twins for operand in inputs):
            return
        key = _key(node, self.twins)
        our_likes = inputs[0].users if inputs else self._ours[_kind(node)]
        their_likes = self.twins[inputs[0]].users if inputs else self._theirs[_kind(node)]
        ours = [like for like in our_likes if is_alike(like, node) and _key(like, self.twins) == key]
        theirs = [like for like in their_likes if self._keys[like] == key]
        if not any(like in self.twins for like in ours) and not self._taken.intersection(theirs):
            self._pair(ours, theirs)

    def _match_by_readers(self, node: fx.Node) -> None:
        if not self._can_match(node) or not node.users or any(user not in self.twins for user in node.users):
            return
        found = {self._operand_at_place_of(node, user) for user in node.users}
        twin = found.pop()
        if found or twin is None or twin in self._taken or not is_alike(node, twin):
            return
        rivals = [like for like in self._theirs[_kind(node)] if like is not twin and self._shares_operand(node, like)]
        if not rivals:
            self._pair([node], [twin])

    def _can_match(self, node: fx.Node) -> bool:
        is_computed = node.op in ("call_module", "call_function", "call_method")
        return is_computed and node not in self.twins and _kind(node) in self._theirs

    def _operand_at_place_of(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        """What the twin of `user` reads where `user` reads `node`."""
        ours, theirs = operands(user), operands(self.twins[user])
        found = {theirs[place] for place, operand in enumerate(ours) if operand is node and len(ours) == len(theirs)}
        return found.pop() if len(found) == 1 else None

    def _shares_operand(self, node: fx.Node, like: fx.Node) -> bool:
        if like in self._taken:
            return False
        pairs = zip(operands(node), operands(like), strict=False)
        return any(self.twins.get(ours) is theirs for ours, theirs in pairs)


def operands(node: fx.Node) -> list[fx.Node]:
    """Every node that this one reads, once for each place where it reads it."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _by_kind(graph: fx.Graph) -> defaultdict[_Key, list[fx.Node]]:
    found: defaultdict[_Key, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        found[_kind(node)].append(node)
    return found


def _kind(node: fx.Node) -> _Key:
    return (node.op, node.target)


def _key(node: fx.Node, twins: dict[fx.Node, fx.Node] | None) -> _Key:
    return (*_kind(node), _shown(node.args, twins), _shown(node.kwargs, twins))


def _shown(argument: Any, twins: dict[fx.Node, fx.Node] | None) -> Any:
    """Comparable, with nodes of the other graph in it. Whether a dropout drops is not what makes it another one."""
    if isinstance(argument, fx.Node):
        return argument if twins is None else twins.get(argument)
    if isinstance(argument, dict):
        return tuple((key, _shown(item, twins)) for key, item in argument.items())
    if isinstance(argument, (list, tuple)):
        return tuple(_shown(item, twins) for item in argument)
    if isinstance(argument, slice):
        return tuple(_shown(item, twins) for item in (argument.start, argument.stop, argument.step))
    return "bool" if isinstance(argument, bool) else repr(argument)
