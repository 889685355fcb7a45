"""Finding chains in a graph: SimAM -> norm -> activation, and norm -> SimAM -> add -> activation."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import fx, nn

from simam_inject.attention import SimAM
from simam_inject.fusing.memory import is_changed_between
from simam_inject.fusing.running import has_hooks, run_chain

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ACTIVATION_MODULES = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
}
_ADDS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True, slots=True)
class Found:
    """One chain in one graph."""

    attention: fx.Node
    norm: fx.Node
    norm_first: bool
    add: fx.Node | None
    activation: fx.Node | None
    kind: str | None
    """Of the activation."""

    @property
    def first(self) -> fx.Node:
        """The node that reads the source."""
        return self.norm if self.norm_first else self.attention

    @property
    def source(self) -> fx.Node:
        """What the chain reads."""
        node = self.first.args[0]
        assert isinstance(node, fx.Node)
        return node

    @property
    def end(self) -> fx.Node:
        """The later of norm and SimAM."""
        return self.attention if self.norm_first else self.norm

    @property
    def residual(self) -> fx.Node | None:
        """What is added."""
        return None if self.add is None else next(node for node in self.add.all_input_nodes if node is not self.end)

    @property
    def last(self) -> fx.Node:
        """The node whose value the chain gives."""
        return self.activation or self.add or self.end

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """What one call replaces, from the last to the first."""
        return tuple(node for node in (self.activation, self.add, self.end, self.first) if node is not None)

    def __str__(self) -> str:
        names = [str(self.norm.target), "SimAM"] if self.norm_first else ["SimAM", str(self.norm.target)]
        if self.add is not None:
            names.append("(+)")
        if self.kind is not None:
            names.append(self.kind)
        return " > ".join(names)


def find_chains(module: nn.Module, graph: fx.Graph) -> tuple[Found, ...]:
    """All chains around the SimAM calls of a rewritten graph of `module`, of which no two have a node in common.

    Each link has one reader only. What a chain reads, it reads where its last node stood: a chain ends before the
    first node that would then see something else.
    """
    chains: list[Found] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if not _calls(module, node, (SimAM,)):
            continue
        for found in _chains_at(module, node):
            if taken.isdisjoint(found.nodes) and not _reads_too_late(module, found):
                chains.append(found)
                taken.update(found.nodes)
                break
    return tuple(chains)


def fuse(graph: fx.Graph, found: Found) -> None:
    """Replace the nodes of one chain by one call, in place."""
    with graph.inserting_before(found.last):
        attention, norm = (graph.get_attr(str(node.target)) for node in (found.attention, found.norm))
        in_place = found.add is not None and found.add.target is operator.iadd
        arguments = (found.source, attention, norm, found.norm_first, found.residual, in_place, found.kind)
        fused = graph.call_function(run_chain, arguments)
    found.last.replace_all_uses_with(fused)
    for node in found.nodes:
        graph.erase_node(node)


def _chains_at(module: nn.Module, attention: fx.Node) -> Iterator[Found]:
    """The chains around one SimAM, the longest first."""
    simam = module.get_submodule(str(attention.target))
    if getattr(simam, "channel_dim", 1) != 1 or has_hooks(simam):
        return
    reader, source = _only_reader(attention), attention.args[0]
    if reader is not None and _is_norm(module, reader):
        shortest = Found(attention, reader, False, None, None, None)
    elif isinstance(source, fx.Node) and _is_norm(module, source) and _only_reader(source) is attention:
        shortest = Found(attention, source, True, None, None, None)
    else:
        return
    add = _only_reader(shortest.end)
    with_add = replace(shortest, add=add) if add is not None and _is_add(add, shortest.end) else shortest
    activation = _only_reader(with_add.last)
    kind = None if activation is None else _activation_kind(module, activation)
    if kind is not None:
        yield replace(with_add, activation=activation, kind=kind)
    if with_add is not shortest:
        yield with_add
    yield shortest


def _reads_too_late(module: nn.Module, found: Found) -> bool:
    """Whether the source or the residual may be written into before the last node."""
    if is_changed_between(module, found.source, found.first, found.last):
        return True
    add, residual = found.add, found.residual
    if add is None or residual is None or add is found.last:
        return False
    return is_changed_between(module, residual, add, found.last)


def _is_add(node: fx.Node, end: fx.Node) -> bool:
    """Whether a node adds something to `end` and writes into nothing else: `h += end` changes what others see of h."""
    is_plain = node.op == "call_function" and node.target in _ADDS and not node.kwargs and len(node.args) == 2
    if not is_plain or not all(isinstance(argument, fx.Node) for argument in node.args):
        return False
    if node.target is operator.iadd and node.args[0] is not end:
        return False
    shapes = {tuple(getattr(argument.meta.get("value"), "shape", ())) for argument in node.all_input_nodes}
    return len(node.all_input_nodes) == 2 and len(shapes) == 1


def _activation_kind(module: nn.Module, node: fx.Node) -> str | None:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return None if has_hooks(called) else _ACTIVATION_MODULES.get(type(called))
    if node.op == "call_function" and len(node.args) == 1:
        return _ACTIVATION_FUNCTIONS.get(node.target)
    return None


def _is_norm(module: nn.Module, node: fx.Node) -> bool:
    if not _calls(module, node, _NORMS) or len(node.args) != 1 or node.kwargs:
        return False
    norm = module.get_submodule(str(node.target))
    return isinstance(norm.running_mean, torch.Tensor) and not has_hooks(norm)


def _calls(module: nn.Module, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
    return node.op == "call_module" and type(module.get_submodule(str(node.target))) in kinds


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
