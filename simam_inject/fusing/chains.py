"""Finding chains in a graph: SimAM -> norm -> activation, and norm -> SimAM -> add -> activation."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import fx, nn

from simam_inject.attention import SimAM
from simam_inject.fusing.running import run_chain

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
    def source(self) -> fx.Node:
        """What the chain reads."""
        first = self.norm if self.norm_first else self.attention
        node = first.args[0]
        assert isinstance(node, fx.Node)
        return node

    @property
    def last(self) -> fx.Node:
        """The node whose value the chain gives."""
        return self.activation or self.add or (self.attention if self.norm_first else self.norm)

    def __str__(self) -> str:
        names = [str(self.norm.target), "SimAM"] if self.norm_first else ["SimAM", str(self.norm.target)]
        if self.add is not None:
            names.append("(+)")
        if self.kind is not None:
            names.append(self.kind)
        return " > ".join(names)


def find_chains(module: nn.Module, graph: fx.Graph) -> tuple[Found, ...]:
    """All chains around the SimAM calls of a rewritten graph of `module`. Each link has one reader only."""
    return tuple(
        found
        for node in graph.nodes
        if _calls(module, node, (SimAM,)) and (found := _chain_at(module, node)) is not None
    )


def fuse(graph: fx.Graph, found: Found) -> None:
    """Replace the nodes of one chain by one call, in place."""
    residual = None
    if found.add is not None:
        before = found.attention if found.norm_first else found.norm
        residual = next(argument for argument in found.add.args if argument is not before)
    with graph.inserting_before(found.last):
        attention, norm = (graph.get_attr(str(node.target)) for node in (found.attention, found.norm))
        arguments = (found.source, attention, norm, found.norm_first, residual, found.kind)
        fused = graph.call_function(run_chain, arguments)
    found.last.replace_all_uses_with(fused)
    order = (found.attention, found.norm) if not found.norm_first else (found.norm, found.attention)
    for node in (found.activation, found.add, *reversed(order)):
        if node is not None:
            graph.erase_node(node)


def _chain_at(module: nn.Module, attention: fx.Node) -> Found | None:
    simam = module.get_submodule(str(attention.target))
    if getattr(simam, "channel_dim", 1) != 1 or _has_hooks(simam):
        return None
    reader = _only_reader(attention)
    if reader is not None and _is_norm(module, reader):
        return _finish(module, attention, reader, norm_first=False)
    source = attention.args[0]
    if isinstance(source, fx.Node) and _is_norm(module, source) and _only_reader(source) is attention:
        return _finish(module, attention, source, norm_first=True)
    return None


def _finish(module: nn.Module, attention: fx.Node, norm: fx.Node, *, norm_first: bool) -> Found:
    last = attention if norm_first else norm
    add = _only_reader(last)
    if add is None or not _is_add(add):
        add = None
    activation = _only_reader(add or last)
    kind = None if activation is None else _activation_kind(module, activation)
    return Found(attention, norm, norm_first, add, activation if kind else None, kind)


def _is_add(node: fx.Node) -> bool:
    is_plain = node.op == "call_function" and node.target in _ADDS and not node.kwargs and len(node.args) == 2
    if not is_plain or not all(isinstance(argument, fx.Node) for argument in node.args):
        return False
    shapes = {tuple(getattr(argument.meta.get("value"), "shape", ())) for argument in node.all_input_nodes}
    return len(node.all_input_nodes) == 2 and len(shapes) == 1


def _activation_kind(module: nn.Module, node: fx.Node) -> str | None:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return None if _has_hooks(called) else _ACTIVATION_MODULES.get(type(called))
    if node.op == "call_function" and len(node.args) == 1:
        return _ACTIVATION_FUNCTIONS.get(node.target)
    return None


def _is_norm(module: nn.Module, node: fx.Node) -> bool:
    if not _calls(module, node, _NORMS) or len(node.args) != 1 or node.kwargs:
        return False
    norm = module.get_submodule(str(node.target))
    return isinstance(norm.running_mean, torch.Tensor) and not _has_hooks(norm)


def _calls(module: nn.Module, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
    return node.op == "call_module" and type(module.get_submodule(str(node.target))) in kinds


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
