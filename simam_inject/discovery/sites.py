"""From a trace to `Site` facts: one for every value of every scope, and one for every module that returns something."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from simam_inject.discovery import layouts
from simam_inject.discovery.aliases import written_views
from simam_inject.discovery.batches import unbatched_ranks
from simam_inject.discovery.flow import Flow, output_node
from simam_inject.discovery.kinds import conv_facts, module_kind
from simam_inject.discovery.naming import join
from simam_inject.discovery.records import Anatomy, Site
from simam_inject.tracing.proxies import Refusal
from simam_inject.tracing.recording import Call
from simam_inject.tracing.scopes import Scope, Trace, active_method, has_children
from simam_inject.tracing.values import UNKNOWN, leaves

_NOT_BASES = frozenset({"Module", "object"})


def discover(trace: Trace, flow: Flow) -> Anatomy:
    """Read every fact that a rule can ask about off the trace."""
    return _Surveyor(trace, flow).survey()


class _Surveyor:
    def __init__(self, trace: Trace, flow: Flow) -> None:
        self.trace = trace
        self.flow = flow
        self.base = _input_length(trace)
        self.unbatched = unbatched_ranks(trace)
        self.sites: dict[str, Site] = {}
        self.joins: dict[str, str] = {}
        self.unread: set[str] = set()
        self.callers: dict[str, tuple[str, tuple[str, ...]]] = {}

    def survey(self) -> Anatomy:
        for scope in self.trace.scopes.values():
            if scope.body is not None:
                self._enter_values(scope)
        for path, module in self.trace.model.named_modules():
            is_mere_container = isinstance(module, (nn.ModuleList, nn.ModuleDict)) and (
                type(module).forward is nn.Module.forward
            )
            if path not in self.sites and not is_mere_container:
                self._enter_module(path, module)
        self._enter_joins()
        order = self._execution_order()
        sites = sorted(self._with_readers(), key=lambda site: (site.runs == 0, order.get(site.path, math.inf)))
        opaque = {scope.path: scope.reason for scope in self.trace.scopes.values() if scope.reason and scope.calls}
        shapes = tuple(tuple(tensor.shape) for tensor in self.trace.example.tensors)
        return Anatomy(tuple(sites), shapes, opaque)

    def _enter_values(self, scope: Scope) -> None:
        assert scope.body is not None
        written = written_views(scope.body.graph, self.flow.names[scope.path])
        for node, name in self.flow.names[scope.path].items():
            if self.flow.child(scope, node) is not None:
                continue  # entered below as the module's own value
            module = self.flow.module(scope, node)
            path = join(scope.path, name)
            value = node.meta.get("value", UNKNOWN)
            site = Site(
                path=path,
                scope=scope.path,
                kind=self.flow.kind(scope, node),
                operands=self._operands(scope, node),
                reads=tuple(
                    dict.fromkeys(o for s in self.flow.tensor_inputs(node) for o in self.flow.origins(scope, s))
                ),
                runs=len(scope.calls),
                is_traced=True,
                is_wrappable=self._is_wrappable_leaf(scope, module),
                **self._facts(value, self.flow.channel_dim(scope, node)),
                **(_module_facts(module) if module is not None else {}),
            )
            if not node.users:
                site = replace(site, obstacle="nobody reads its value")
            if node in written:
                site = replace(site, obstacle=written[node])
            if path in self.sites:
                site = _ambiguous(self.sites[path], site)
            self.sites[path] = site
        for node in scope.body.graph.nodes:
            child = self.flow.child(scope, node)
            if child is not None:
                self.callers.setdefault(child.path, (scope.path, self._operands(scope, node)))
                if not node.users:
                    self.unread.add(child.path)

    def _is_wrappable_leaf(self, scope: Scope, module: nn.Module | None) -> bool:
        """Wrapping the module would attend this value and no other."""
        return module is not None and _is_wrappable(module) and len(self.trace.calls[id(module)]) == len(scope.calls)

    def _operands(self, scope: Scope, node: fx.Node) -> tuple[str, ...]:
        names = self.flow.names[scope.path]
        found: list[str] = []
        for source in self.flow.tensor_inputs(node):
            if source in names:
                found.append(self.flow.path(scope, source))
            else:  # a list or tuple on the way: what it was made from
                found.extend(self._operands(scope, source))
        return tuple(found)

    def _enter_module(self, path: str, module: nn.Module) -> None:
        """A module with children, or a leaf that no graph calls: its own value is its site."""
        first_path = self.trace.path_of[id(module)]
        calls = self.trace.calls.get(id(module), ())
        scope = self.trace.scopes.get(first_path)
        caller, operands = self.callers.get(path, (path.rpartition(".")[0], ()))
        facts: dict[str, Any] = {}
        if not calls:
            facts = {"runs": 0, "obstacle": "never ran in the example forward"}
        else:
            facts = {"runs": len(calls), **self._facts(calls[0].output, self._module_layout(scope, calls[0]))}
            if path in self.unread:
                facts["obstacle"] = "nobody reads its value"
            if scope is not None and scope.body is not None:
                result = output_node(scope.body.graph).all_input_nodes
                facts["reads"] = tuple(dict.fromkeys(o for node in result for o in self.flow.origins(scope, node)))
        kind = "block" if has_children(module) else module_kind(module)
        facts |= {"is_wrappable": _is_wrappable(module), "is_traced": path in self.callers}
        self.sites[path] = Site(path=path, scope=caller, kind=kind, operands=operands, **facts, **_module_facts(module))

    def _module_layout(self, scope: Scope | None, call: Call) -> int:
        """Channel dimension of what a module returns: from its graph, else from the graph that calls it."""
        if scope is not None and scope.body is not None:
            results = output_node(scope.body.graph).all_input_nodes
            return self.flow.channel_dim(scope, results[0]) if results else 1
        caller = self.flow.caller(scope.path) if scope is not None else None
        if caller is not None:
            return self.flow.channel_dim(*caller)
        rank = call.output.dim() if isinstance(call.output, torch.Tensor) else 0
        return layouts.channel_dim(self.flow.returned_layout(call), rank)

    def _facts(self, value: Any, channel_dim: int) -> dict[str, Any]:
        """Shape facts of a value and, where it cannot be attended, the obstacle."""
        if not isinstance(value, torch.Tensor):
            if value is UNKNOWN:
                return {"obstacle": "its value is not known from the example forward"}
            inside = [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]
            plural = f"{len(inside)} tensors" if len(inside) != 1 else "one tensor"
            return {"obstacle": f"returns a {type(value).__name__} with {plural}, not a feature map"}
        shape = tuple(value.shape)
        facts: dict[str, Any] = {"shape": shape, "dtype": str(value.dtype).removeprefix("torch."), "channel_dim": 1}
        if not value.is_floating_point():
            facts["obstacle"] = f"holds {facts['dtype']}, not floating point numbers"
        elif not 3 <= len(shape) <= 5:
            facts["obstacle"] = f"is not a feature map: its shape is {shape}"
        elif len(shape) in self.unbatched:
            facts["obstacle"] = self.unbatched[len(shape)]
        elif channel_dim == 0:
            facts["obstacle"] = f"has its channels neither second nor last: its shape is {shape}"
        else:
            facts["channel_dim"] = channel_dim
            spatial = shape[2:] if channel_dim == 1 else shape[1:-1]
            facts["reduction"] = _reduction(self.base, spatial)
        return facts

    def _enter_joins(self) -> None:
        for scope in self.trace.scopes.values():
            for node in scope.body.graph.nodes if scope.body else ():
                if node in self.flow.names[scope.path] and self.flow.kind(scope, node) == "add":
                    branch = self.flow.branch_of(scope, node)
                    if branch is not None and branch in self.flow.names[scope.path]:
                        self.joins[self.flow.path(scope, branch)] = self.flow.path(scope, node)

    def _with_readers(self) -> list[Site]:
        readers: defaultdict[str, list[str]] = defaultdict(list)
        for site in self.sites.values():
            if site.kind not in ("block", "input"):
                for read in site.reads:
                    readers[read].append(site.path)
        return [
            replace(site, readers=tuple(readers[site.path]), joins=self.joins.get(site.path))
            for site in self.sites.values()
        ]

    def _execution_order(self) -> dict[str, float]:
        """Rank of each path: the order in which the example forward finished computing it."""
        order: dict[str, float] = {}
        entered: set[str] = set()

        def visit(scope: Scope) -> None:
            entered.add(scope.path)
            for node in scope.body.graph.nodes if scope.body else ():
                child = self.flow.child(scope, node)
                if child is None and node in self.flow.names[scope.path]:
                    order.setdefault(join(scope.path, self.flow.names[scope.path][node]), len(order))
                elif child is not None and child.path not in entered:
                    visit(child)
            order[scope.path] = len(order)

        for scope in self.trace.scopes.values():
            if scope.calls and scope.path not in entered:
                visit(scope)
        return order


def _ambiguous(one: Site, other: Site) -> Site:
    """Two blocks call one leaf by the same path: `self.block(x) + self.block.conv(y)`."""
    callers = " and ".join(scope or "the model itself" for scope in (one.scope, other.scope))
    obstacle = f"is called in several forwards, those of {callers}, and its path does not say which call is meant"
    return replace(one, runs=one.runs + other.runs, obstacle=obstacle)


def _is_wrappable(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False
    try:
        active_method(module)
    except Refusal:
        return False
    return True


def _module_facts(module: nn.Module) -> dict[str, Any]:
    names = tuple(base.__name__ for base in type(module).__mro__ if base.__name__ not in _NOT_BASES)
    return {"class_name": names[0] if names else type(module).__name__, "bases": names, **conv_facts(module)}


def _input_length(trace: Trace) -> int:
    """Length of the last spatial dimension of what the first conv reads: the input, as the network itself sees it."""
    for calls in trace.calls.values():
        first = calls[0]
        if module_kind(first.module).startswith("conv") and first.args and isinstance(first.args[0], torch.Tensor):
            return int(first.args[0].shape[-1])
    return max((tensor.shape[-1] for tensor in trace.example.tensors if tensor.dim() > 2), default=0)


def _reduction(base: int, spatial: tuple[int, ...]) -> int | None:
    if not spatial or not spatial[-1] or not base:
        return None
    return int(2 ** max(0, round(math.log2(base / spatial[-1]))))
