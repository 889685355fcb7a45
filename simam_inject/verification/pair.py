"""One forward of the injected model, and one of the original that goes on with the results of its SimAMs.

At each site the original computes a value, which has to be what the SimAM was given, and the formula of it what the
SimAM returned. As the original continues with that result, rounding does not add up: the outputs are equal bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from simam_inject.attention import SimAM
from simam_inject.editing.attach import Attended, attended_in
from simam_inject.errors import ModelError
from simam_inject.planning.records import Check
from simam_inject.verification.formula import Call, why_far
from simam_inject.verification.oracle import Oracle
from simam_inject.verification.outputs import difference, relative_distance, tensors_of

_CHANNELS = 8
"""About how many channels of a large map are looked at."""
_LARGEST_DISTANCE = 1e-3
"""Of two outputs, relative to the largest value: a module may compute in another way where there are hooks."""
Calls = dict[str, list[Call]]
"""Of each SimAM, by its dotted name."""


@contextmanager
def calls_of(twin: nn.Module, left_out: Collection[str] = (), *, is_large: bool = False) -> Iterator[Calls]:
    """Inside, the calls of every SimAM of an injected twin are written down.

    Args:
        left_out: SimAMs that run, and whose result is replaced by what they are given.
        is_large: write down some of the channels only.
    """
    calls: Calls = {}

    def note(entry: Attended, attention: nn.Module, args: Any, result: Tensor) -> Tensor | None:
        given: Tensor = args[0]
        if not isinstance(result, Tensor):
            raise ModelError(f"attention at {entry.site.path} returned a {type(result).__name__} instead of a tensor")
        edges = None
        if torch.is_grad_enabled() and given.requires_grad and result.requires_grad:
            edges = get_gradient_edge(given), get_gradient_edge(result)
        dim = entry.site.channel_dim % given.dim()
        some = (slice(None),) * dim + (slice(None, None, max(1, given.shape[dim] // _CHANNELS) if is_large else 1),)
        one, other = (tensor.detach()[some].clone() for tensor in (given, result))
        calls.setdefault(entry.site.module, []).append(Call(attention, given.shape, one, other, edges))
        return given if entry.site.module in left_out else None

    hooked = [(entry, entry.attention) for entry in attended_in(twin) if entry.attention is not None]
    handles = [attention.register_forward_hook(partial(note, entry)) for entry, attention in hooked]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Pair:
    """A live forward that has run, and the original's that follows it.

    Args:
        calls: of the live forward.
        output: its output.
        problem: why there is none.
    """

    def __init__(self, oracle: Oracle, calls: Calls, output: Any, problem: str | None = None) -> None:
        self.oracle = oracle
        self.calls = calls
        self.output = output
        self.expected: Any = None
        """The original's output; to be set when it has run."""
        self._failure = problem
        self._counts: Counter[str] = Counter()
        self._problems: list[str] = []
        self._right: list[tuple[Attended, Call, Any]] = []
        """Calls, with their node in the autograd graph of the original."""

    def attend(self, entry: Attended, x: Tensor) -> Tensor:
        """For `Oracle.attending`: compare the value of a site with what the SimAM was given, and return its result."""
        if entry.site.channel_dim == -1 and not isinstance(entry.attention, SimAM):  # others are given N, C, spatial
            return self._attend(entry, x.movedim(-1, 1)).movedim(1, -1)
        return self._attend(entry, x)

    def _attend(self, entry: Attended, x: Tensor) -> Tensor:
        key = entry.site.module
        place, calls = self._counts[key], self.calls.get(key, [])
        self._counts[key] += 1
        if place >= len(calls):
            return x
        call = calls[place]
        problem = why_far(call.given, x, "what the original computes there", factor=10)
        problem = f"{entry.site.path} {problem}" if problem else self.oracle.why_not_formula(entry, call)
        if problem is not None:
            self._problems.append(problem)
            return x
        result = torch.where(torch.ones_like(x, dtype=torch.bool), call.result, x)  # x stays in the graph
        self._right.append((entry, call, result.grad_fn))
        return result

    def check(self, name: str) -> Check:
        """The values: at every site, and of the outputs."""
        if problem := self._failure or next(self._site_problems(), None):
            return Check(name, False, problem)
        return check_outputs(name, self.output, self.expected, _LARGEST_DISTANCE)

    def _site_problems(self) -> Iterator[str]:
        for entry in self.oracle.sites:
            calls, expected = self.calls.get(entry.site.module, []), self._counts[entry.site.module]
            if entry.site.module in self.oracle.unnamed:
                yield from filter(None, (self.oracle.why_not_formula(entry, call) for call in calls))
            elif len(calls) != expected:
                path = entry.site.path
                yield f"{path} ran {len(calls)} time(s), and the original computes it {expected} time(s)"
        yield from self._problems

    def why_no_gradient(self) -> str | None:
        """A site through which no gradient passes, or another one."""
        live, stock = _nodes_behind(self.output), _nodes_behind(self.expected)
        for entry, call, node in self._right:
            if node is None:  # nothing before it requires a gradient
                continue
            if call.edges is None or (node in stock and call.edges[1].node not in live):
                return f"the gradient does not pass through a SimAM at {entry.site.path}"
            if problem := self.oracle.why_no_gradient(entry, call):
                return problem
        return None


def check_outputs(name: str, found: Any, wanted: Any, largest_distance: float = 0.0) -> Check:
    """Equal bit for bit, or within rounding; not run where there is nothing to compare."""
    if not any(True for _ in tensors_of(wanted)):
        return Check(name, None, f"the output, a {type(wanted).__name__}, holds no tensors to compare")
    differs = difference(found, wanted)
    if differs is None:
        return Check(name, True, "bit for bit")
    distance = relative_distance(found, wanted)
    if isinstance(distance, str) or not 0.0 < distance <= largest_distance:
        return Check(name, False, differs)
    return Check(name, True, f"within {distance:.1g} of the largest value")


def _nodes_behind(output: Any) -> set[Any]:
    """Every autograd node that a backward of the output reaches."""
    found: set[Any] = set()
    ahead = [tensor.grad_fn for tensor in tensors_of(output) if tensor.grad_fn is not None]
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += [behind for behind, _ in node.next_functions if behind is not None]
    return found
