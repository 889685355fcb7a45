"""Views that are written in place: attended, one would be another tensor, and what it looks into stay unwritten."""

from __future__ import annotations

import torch
from torch import fx


def written_views(graph: fx.Graph, names: dict[fx.Node, str]) -> dict[fx.Node, str]:
    """Views through which the forward writes into another value that it reads later, each with a sentence.

    `a = y[:, :4]; a.mul_(3); return d(y)`: attended, `a` would be a tensor of its own, and `y` would stay as it was.

    Args:
        graph: of one scope.
        names: what `value_names` calls its values.
    """
    found: dict[fx.Node, str] = {}
    for write in graph.nodes:
        if not write.meta.get("in_place") or not write.args or not isinstance(write.args[0], fx.Node):
            continue
        views: list[fx.Node] = []
        node: fx.Node | None = write.args[0]
        while node is not None:
            if any(user > write for user in node.users):
                name = names.get(node, node.name)
                told = f"is a view of {name} that {names.get(write, write.name)} writes into; {name} is read afterwards"
                found.update({view: told for view in views if view not in found})
            views.append(node)
            node = _base(node)
    return found


def _base(node: fx.Node) -> fx.Node | None:
    """The input whose memory this value looks into; None if it has its own."""
    mine = _storage(node)
    return next((source for source in node.all_input_nodes if mine and _storage(source) == mine), None)


def _storage(node: fx.Node) -> tuple[int, ...]:
    """Identity of the memory behind a value, or behind the tensors of a list."""
    value = node.meta.get("value")
    if isinstance(value, (list, tuple)):
        value = next((item for item in value if isinstance(item, torch.Tensor)), None)
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return ()
    return (value.untyped_storage()._cdata,)
