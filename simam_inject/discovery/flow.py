"""The dataflow as one logical graph: the output of a child scope is the output node of its graph.

`Flow` answers, for a node of any scope, which operations its value comes from, which dimension holds its channels, and
whether it is the branch of a residual add. It looks through scopes that were traced and stops at those that were not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from simam_inject.discovery import layouts
from simam_inject.discovery.kinds import TRANSPARENT, module_kind, node_kind
from simam_inject.discovery.layouts import Layout
from simam_inject.discovery.naming import join, value_names
from simam_inject.tracing.recording import Call
from simam_inject.tracing.scopes import Scope, Trace

_WEIGHTED = (_ConvNd, nn.Linear)


@dataclass(eq=False)
class Flow:
    """Questions about the dataflow of one traced model. Answers are kept, since chains are asked again and again."""

    trace: Trace
    names: dict[str, dict[fx.Node, str]] = field(init=False)
    _caller: dict[str, tuple[Scope, fx.Node]] = field(default_factory=dict)
    _origins: dict[fx.Node, tuple[str, ...]] = field(default_factory=dict)
    _layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    _weights: dict[int, int] = field(default_factory=dict)
    _parent: dict[int, tuple[Call, int]] = field(default_factory=dict)
    """The call that made a call, by its `id`, and how many it had made before."""

    def __post_init__(self) -> None:
        self.names = {path: value_names(scope.body.graph) for path, scope in self.trace.scopes.items() if scope.body}
        for scope in self.trace.scopes.values():
            for node in scope.body.graph.nodes if scope.body else ():
                child = self.child(scope, node)
                if child is not None:
                    self._caller.setdefault(child.path, (scope, node))
        for calls in self.trace.calls.values():
            for call in calls:
                self._parent.update((id(part), (call, index)) for index, part in enumerate(call.children))

    def module(self, scope: Scope, node: fx.Node) -> nn.Module | None:
        """The module that a call_module node calls."""
        return scope.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def child(self, scope: Scope, node: fx.Node) -> Scope | None:
        """The scope that a call_module node runs, if the module called has children."""
        module = self.module(scope, node)
        return None if module is None else self.trace.scopes.get(self.trace.path_of[id(module)])

    def caller(self, path: str) -> tuple[Scope, fx.Node] | None:
        """The first call of the scope at `path` in a graph: (scope of that graph, its node)."""
        return self._caller.get(path)

    def path(self, scope: Scope, node: fx.Node) -> str:
        """Path of the value a node holds. A child scope's value is named by its own path."""
        child = self.child(scope, node)
        return join(scope.path, self.names[scope.path][node]) if child is None else child.path

    def tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        """The nodes of the same graph whose tensors (or lists of tensors) this node reads, parameters aside."""
        return [source for source in node.all_input_nodes if source.op != "get_attr" and _holds_tensor(source)]

    def origins(self, scope: Scope, node: fx.Node) -> tuple[str, ...]:
        """Paths of the operations that computed this value, across block borders and pass-through operations."""
        if node not in self._origins:
            self._origins[node] = ()  # ends the recursion on a module that calls itself
            self._origins[node] = tuple(dict.fromkeys(self._find_origins(scope, node)))
        return self._origins[node]

    def _find_origins(self, scope: Scope, node: fx.Node) -> list[str]:
        if node.op == "placeholder":
            outside = self._argument_nodes(scope, node)
            if outside is None:
                return [join(scope.path, self.names[scope.path].get(node, str(node.target)))]
            parent, sources = outside
            return [path for source in sources for path in self.origins(parent, source)]
        if node.op == "get_attr":
            return []
        child = self.child(scope, node)
        if child is not None and child.body is not None:
            results = output_node(child.body.graph).all_input_nodes
            return [path for result in results for path in self.origins(child, result)]
        if node not in self.names[scope.path] or self.kind(scope, node) in TRANSPARENT:
            return [path for source in self.tensor_inputs(node) for path in self.origins(scope, source)]
        return [self.path(scope, node)]

    def kind(self, scope: Scope, node: fx.Node) -> str:
        """Kind of the operation at a node; `block` for a call of a module with children, `input` for a parameter."""
        if node.op == "placeholder":
            return "input"
        module = self.module(scope, node)
        if module is None:
            return node_kind(node)
        return "block" if self.child(scope, node) is not None else module_kind(module)

    def _argument_nodes(self, scope: Scope, node: fx.Node) -> tuple[Scope, list[fx.Node]] | None:
        """The parent's nodes that become this parameter in the scope's first call."""
        if scope.path not in self._caller or scope.body is None:
            return None
        parent, call = self._caller[scope.path]
        names = [argument.name for argument in scope.body.arguments]
        position = names.index(str(node.target)) if node.target in names else -1
        argument: Any = call.kwargs.get(str(node.target))
        if argument is None and 0 <= position < len(call.args):
            argument = call.args[position]
        found: list[fx.Node] = []
        fx.map_arg(argument, found.append)
        return (parent, found) if found else None

    def channel_dim(self, scope: Scope, node: fx.Node) -> int:
        """1 or -1; 0 where the channels stand elsewhere."""
        return layouts.channel_dim(self.layout(scope, node), len(_shape(node)))

    def layout(self, scope: Scope, node: fx.Node) -> Layout:
        """The dimensions that hold the channels of this value, or of the tensors in it."""
        if node not in self._layouts:
            self._layouts[node] = layouts.SECOND  # ends the recursion on a module that calls itself
            self._layouts[node] = self._find_layout(scope, node)
        return self._layouts[node]

    def _find_layout(self, scope: Scope, node: fx.Node) -> Layout:
        if node.op == "placeholder":
            outside = self._argument_nodes(scope, node)
            return self.layout(outside[0], outside[1][0]) if outside else self._read_as(scope, node) or layouts.SECOND
        child = self.child(scope, node)
        if child is not None and child.body is not None:
            results = output_node(child.body.graph).all_input_nodes
            return self.layout(child, results[0]) if results else layouts.SECOND
        module, kind, after = self.module(scope, node), self.kind(scope, node), _shape(node)
        written = layouts.written(kind, module, len(after))
        sources = [source for source in self.tensor_inputs(node) if _shape(source)]
        if written is not None or not sources:
            return layouts.SECOND if written is None else written
        like = [source for source in sources if len(_shape(source)) == len(after)] or sources
        source = next((source for source in like if self.layout(scope, source)), like[0])
        layout, before = self.layout(scope, source), _shape(source)
        if child is not None:
            written_inside = _last_written(child.calls[0].children, after) if child.calls else None
            return layouts.recognised(before, after, layout) if written_inside is None else written_inside
        if kind in layouts.RESHAPES and math.prod(before) == math.prod(after):
            return layouts.reshaped(before, after, layout)
        if len(before) != len(after):
            return layouts.recognised(before, after, layout)
        if kind in layouts.PERMUTES:
            return layouts.permuted(node, kind, module, layout, len(after))
        if kind in layouts.MATRIX_PRODUCTS and len(sources) == 2:
            return layouts.multiplied(layout, self.layout(scope, sources[1]), len(after))
        return layout

    def returned_layout(self, call: Call) -> Layout:
        """The layout of what a call returns that no graph shows, from the modules that an opaque block runs."""
        shape = _shape_of(call.output)
        written = layouts.written(module_kind(call.module), call.module, len(shape))
        if written is None:
            written = _last_written(call.children, shape)
        if written is None and id(call) in self._parent:  # a dropout: what was written before it
            parent, index = self._parent[id(call)]
            written = _last_written(parent.children[:index], shape)
        return layouts.SECOND if written is None else written

    def _read_as(self, scope: Scope, node: fx.Node) -> Layout | None:
        """The layout that the first reader which knows expects: where an opaque block calls, nobody else can tell.

        What is computed from the value element by element, an add or a dropout, is read as the value is.
        """
        for reader in node.users:
            kind = self.kind(scope, reader)
            child = self.child(scope, reader)
            if child is not None and child.body is not None:
                inputs = [given for given in child.body.graph.nodes if given.op == "placeholder"]
                given = next((g for g in inputs if node in (self._argument_nodes(child, g) or (scope, []))[1]), None)
                found = None if given is None else self._read_as(child, given)
            else:
                found = layouts.written(kind, self.module(scope, reader), len(_shape(node)))
                if found is None and kind not in layouts.MOVES and _shape(reader) == _shape(node):
                    found = self._read_as(scope, reader)
            if found is not None:
                return found
        return None

    def branch_of(self, scope: Scope, node: fx.Node) -> fx.Node | None:
        """The operand of an add that is the residual branch, or None if the add joins no skip.

        Both operands must come from a common value; the branch is the one with more convs and linears on its own way.
        """
        operands = self.tensor_inputs(node)
        if len(operands) != 2 or operands[0].meta["value"].shape != operands[1].meta["value"].shape:
            return None
        ways = [_ancestors(operand) for operand in operands]
        if not ways[0] & ways[1]:
            return None
        weights = [sum(self._weight(scope, step) for step in ways[i] - ways[1 - i]) for i in (0, 1)]
        if weights[0] == weights[1]:
            return None
        return operands[0] if weights[0] > weights[1] else operands[1]

    def _weight(self, scope: Scope, node: fx.Node) -> int:
        module = self.module(scope, node)
        if module is None:
            return 0
        if id(module) not in self._weights:
            self._weights[id(module)] = sum(isinstance(part, _WEIGHTED) for part in module.modules())
        return self._weights[id(module)]


def output_node(graph: fx.Graph) -> fx.Node:
    """The graph's one output node."""
    node: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return node


def _holds_tensor(node: fx.Node) -> bool:
    value = node.meta.get("value")
    return isinstance(value, (torch.Tensor, list, tuple, dict)) and not isinstance(value, torch.Size)


def _shape(node: fx.Node) -> layouts.Shape:
    """Shape of the tensor a node holds, or of the first in its list of tensors; () if there is none."""
    return _shape_of(node.meta.get("value"))


def _shape_of(value: Any) -> layouts.Shape:
    if isinstance(value, (list, tuple)):
        value = next((item for item in value if isinstance(item, torch.Tensor)), None)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _last_written(calls: list[Call], after: layouts.Shape) -> Layout | None:
    """The layout of a value of shape `after`, from the last module called that writes a layout of its own."""
    for call in reversed(calls):
        shape = _shape_of(call.output)
        written = layouts.written(module_kind(call.module), call.module, len(shape)) if shape else None
        if written is not None:
            return layouts.recognised(shape, after, written)
        deeper = _last_written(call.children, after)
        if deeper is not None:
            return deeper
    return None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        step = waiting.pop()
        if step not in found and step.op != "get_attr":
            found.add(step)
            waiting.extend(step.all_input_nodes)
    return found
