"""Who writes into whose memory: a value that a chain reads later than before must not have changed in between.

Nodes do not say it, so everything unknown is taken for the worst: a view of all that it reads, and a writer of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from simam_inject.attention import SimAM

_MAKERS = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Linear,
)
"""Modules that return new memory and never write into what they are given."""
_OUTSIDE = "placeholder"
"""Stands for every argument and attribute: the caller may pass one tensor twice."""
_PURE = ("torch", "_operator", "builtins", "math")
"""Packages whose functions write only where their name or `out` says so."""


def is_changed_between(module: nn.Module, value: fx.Node, first: fx.Node, last: fx.Node) -> bool:
    """Whether a node after `first` and before `last`, in a graph of `module`, may write into what `value` is."""
    between = _between(first, last)
    writers = [node for node in between if _may_write(module, node)]
    if not writers:
        return False
    memory = _memory(module, value)
    return any(memory & _memory(module, read) for node in writers for read in node.all_input_nodes)


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    node = first.next
    while node is not last:
        yield node
        node = node.next


def _memory(module: nn.Module, node: fx.Node) -> set[fx.Node | str]:
    """The nodes whose memory the node's value may be, or be a view of."""
    found: set[fx.Node | str] = set()
    waiting = [node]
    while waiting:
        seen = waiting.pop()
        if seen in found:
            continue
        found.add(seen)
        if seen.op in ("placeholder", "get_attr"):
            found.add(_OUTSIDE)
        elif not (seen.op == "call_module" and isinstance(_called(module, seen), _MAKERS)):
            waiting += seen.all_input_nodes
    return found


def _may_write(module: nn.Module, node: fx.Node) -> bool:
    if node.meta.get("in_place") or "out" in node.kwargs:
        return True
    if node.op == "call_module":
        return _writes(_called(module, node))
    if node.op == "call_function":
        return str(getattr(node.target, "__module__", "")).partition(".")[0] not in _PURE
    return False


def _writes(called: nn.Module) -> bool:
    """Whether a module may write into what it is given."""
    if isinstance(called, (*_MAKERS, SimAM)):
        return False
    if type(called) is nn.Sequential:
        for child in called.children():
            if _writes(child):
                return True
            if isinstance(child, _MAKERS):
                break
        return False
    is_own = not type(called).__module__.startswith("torch.nn.modules")
    return is_own or getattr(called, "inplace", False) is True


def _called(module: nn.Module, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))
