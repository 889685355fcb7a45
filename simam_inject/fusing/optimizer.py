"""`optimize`: give injected modules a forward in which SimAM and its neighbours are one pass.

The fused forward runs in eager inference only: in train mode, under autograd and under a compiler, which fuses by
itself, the ordinary rewritten forward runs, and `verify`, `export` and `prove` look at that one. The fused class is
one more subclass, so `eject` takes both out, a pickled module comes back unfused, and a `state_dict` shows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from simam_inject.errors import ModelError
from simam_inject.fusing.chains import Found, find_chains, fuse
from simam_inject.integrations import network_of
from simam_inject.rewriting.classes import is_injected, put, specification_of, stock_class
from simam_inject.rewriting.code import body_source, inference_source
from simam_inject.rewriting.graphs import insert
from simam_inject.rewriting.recorded import record_again
from simam_inject.rewriting.rewriter import stock
from simam_inject.rewriting.unfused import UNFUSED, unfused_class
from simam_inject.surgery import injected
from simam_inject.tracing.scopes import active_method
from simam_inject.tracing.tracer import trace


@dataclass(frozen=True, slots=True)
class Fusion:
    """One chain that runs in one pass now."""

    path: str
    """Of the module whose forward has it."""
    chain: str
    """As `SimAM > bn2 > relu`."""


def optimize(model: nn.Module) -> tuple[Fusion, ...]:
    """Fuse SimAM with a batch norm before or after it, an add and an activation, for eager inference. In place.

    Equal to the unfused model up to rounding (1e-5 in float32). Calling it again changes nothing.

    Args:
        model: an injected network, in eval mode.

    Returns:
        What was fused, in module order; empty where no SimAM stands next to a batch norm.

    Raises:
        ModelError: there is no SimAM in the model, or it is in train mode.
    """
    network = network_of(model)
    if not injected(network):
        raise ModelError("there is no SimAM in this model to fuse; inject(model, recipe) puts it there")
    if network.training:
        raise ModelError("fused inference is for a model in eval mode; call model.eval() first")
    unoptimize(network)
    fusions: list[Fusion] = []
    for path, module in list(network.named_modules()):
        if is_injected(module):
            fusions += [Fusion(path, chain) for chain in _optimize_module(module)]
    return tuple(fusions)


def unoptimize(model: nn.Module) -> nn.Module:
    """Give every fused module its ordinary rewritten forward back. In place; returns the same object."""
    for module in network_of(model).modules():
        unfused = unfused_class(module)
        if unfused is not None:
            put(module, unfused)
    return model


def _optimize_module(module: nn.Module) -> tuple[str, ...]:
    specification = specification_of(module)
    inner = tuple(edit for edit in specification.edits if edit.value)
    if len(inner) != len(specification.edits) or specification.arguments is None:
        return ()  # a wrapped output has no neighbour inside; a call with an object of a class of its own is not known
    name = active_method(module)
    children = {edit.child: module._modules[edit.child] for edit in inner}
    with stock(module):
        body = trace(module, record_again(module, specification), name)
        graph, _ = insert(body.graph, inner, body.graph)
        module._modules.update(children)  # so that the graph's calls of them can be looked up
        try:
            chains = find_chains(module, graph)
        finally:
            for child in children:
                del module._modules[child]
    if not chains:
        return ()
    told = tuple(str(chain) for chain in chains)
    _put_fused(module, name, body, graph, chains)
    return told


def _put_fused(module: nn.Module, name: str, body: Any, graph: fx.Graph, chains: tuple[Found, ...]) -> None:
    for chain in chains:
        fuse(graph, chain)
    graph.lint()
    swapped = type(module)
    fused_name = f"_simam_{name}_fused"
    fused = body_source(fused_name, body, graph)
    choice = inference_source(name, body.arguments, fused_name, getattr(swapped, name))
    namespace: dict[str, Any] = {
        "__module__": swapped.__module__,
        "__qualname__": swapped.__qualname__,
        "__doc__": swapped.__doc__,
        UNFUSED: swapped,
        "_simam_stock_class": stock_class(module),
        fused_name: fused.compile(),
        name: choice.compile(),
    }
    put(module, type(swapped)(swapped.__name__, (swapped,), namespace))  # type: ignore[misc]
