"""One forward of the injected model, and one of the original that goes on with the results of its SimAMs.

At each site the SimAM must have returned the formula of what the original computes there. As the original continues
with that result, rounding does not add up: the outputs are equal bit for bit.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import Attended, attended_in
from simam_inject.errors import ModelError, a_type, describe_exception
from simam_inject.nested import tensors_of
from simam_inject.verification.checks import DISTURBED, Check, unless
from simam_inject.verification.formula import Truth
from simam_inject.verification.oracle import Oracle
from simam_inject.verification.outputs import difference

_CHANNELS = 8
"""About how many channels of a map are compared at the size of the example."""


class _Call(NamedTuple):
    """One call of an attention module: its input, if gradients are compared, and the autograd node that goes on."""

    attention: nn.Module
    given: Tensor | None
    result: Tensor
    node: Any


class Pair:
    """The two forwards, in one mode on one example: `forward` runs a twin. If `training`, gradients are compared too.

    If `bypassed`, both networks go on with the input of each SimAM, which nevertheless runs and is compared.
    """

    def __init__(
        self, oracle: Oracle, forward: Callable[[nn.Module], Any], *, training: bool = False, bypassed: bool = False
    ) -> None:
        self.oracle, self.forward, self.training, self.bypassed = oracle, forward, training, bypassed
        self.calls: dict[str, list[_Call]] = defaultdict(list)
        """Of each attention module, by its path."""
        self.problems: dict[str, str] = {}
        """The first one of each, by its path."""
        self.not_bypassed: list[str] = []
        self.running: tuple[Attended, tuple[int, ...]] | None = None
        """The site of the other attention module than SimAM that runs now, and the shape of its map."""
        self.output: Any = None
        self.wanted: Any = None
        self.is_disturbed = False
        """The forwards drew different random numbers, and differ."""

    def restart(self) -> None:
        """Forget the forwards that have run."""
        self.calls.clear()
        self.not_bypassed.clear()

    def is_equal(self) -> bool:
        """Nothing differs."""
        return not self.problems and difference(self.output, self.wanted) is None

    def check(self, name: str) -> Check:
        """Whether the injected model is the original with the formula at its sites."""
        return (
            self.check_outputs(name) if self.is_disturbed else unless(self.problems.values(), self.check_outputs(name))
        )

    def check_outputs(self, name: str) -> Check:
        """Whether both outputs are equal bit for bit; not run where there is nothing to compare."""
        if self.is_disturbed:
            return Check(name, None, DISTURBED)
        if not any(True for _ in tensors_of(self.wanted)):
            return Check(name, None, f"the output, {a_type(self.wanted)}, holds no tensors to compare")
        differs = difference(self.output, self.wanted)
        return Check(name, differs is None, differs or "bit for bit")

    def run_injected(self, twin: nn.Module) -> None:
        """Run the injected model, and record the calls of its attention modules."""
        for entry in attended_in(twin):
            assert entry.attention is not None
            if not isinstance(entry.attention, SimAM):
                entry.attention.register_forward_pre_hook(partial(self._enter, entry))
            entry.attention.register_forward_hook(partial(self._record, entry))
        try:
            self.output = self.forward(twin)
        except Exception as error:
            if self.running is None:
                raise
            entry, shape = self.running
            raise ModelError(
                f"attention at {entry.site.path}, {a_type(entry.attention)}, cannot be applied to a map of shape "
                f"{shape}: {describe_exception(error):.250}"
            ) from error.with_traceback(None)  # see `_run_both` of the verifier

    def _enter(self, entry: Attended, _attention: nn.Module, args: tuple[Any, ...]) -> None:
        self.running = entry, tuple(args[0].shape)

    def _record(self, entry: Attended, attention: nn.Module, args: tuple[Any, ...], result: Any) -> Tensor:
        """Hook of an attention module: returns what the network goes on with, and may write into."""
        x: Tensor = args[0]
        self.running = None
        if not isinstance(result, Tensor):
            raise ModelError(f"attention at {entry.site.path} returned {a_type(result)} instead of a tensor")
        if not isinstance(attention, SimAM) and result.shape != x.shape:
            shapes = f"{tuple(result.shape)} for a map of shape {tuple(x.shape)}"
            raise ModelError(f"attention at {entry.site.path} returned a tensor of shape {shapes}")
        calls = self.calls[entry.site.module]
        if isinstance(attention, SimAM) and not calls:
            attention.bypassed = True
            if attention.forward(x) is not x:
                self.not_bypassed.append(f"{entry.site.path} does not return its input while it is bypassed")
            attention.bypassed = False
        passed = x if self.bypassed else result.clone()
        kept = self._part(entry, result).clone() if self.bypassed else result
        copied = passed if passed._base is None else passed._base  # that of a tensor subclass is a view of the copy
        calls.append(_Call(attention, x if self.training else None, kept, copied.grad_fn))
        return passed

    def _part(self, entry: Attended, x: Tensor) -> Tensor:
        """What is compared of a map: everything, or some channels of one that is large."""
        dim = entry.site.channel_dim % x.dim()
        some = slice(None, None, max(1, x.shape[dim] // _CHANNELS) if self.bypassed else 1)
        return x[(slice(None),) * dim + (some,)]

    def run_original(self, original: nn.Module, unnumbered: Collection[str] = ()) -> None:
        """Run the original with the result of the next call in the place of each value, and compare.

        At `unnumbered` sites the original computes other values than in the example. Their values are those of the
        same operation, whatever their number, that fit the next call.
        """
        self.problems, self.nodes = {}, list[tuple[Attended, _Call, Any]]()
        waiting = {module: deque(calls) for module, calls in self.calls.items()}

        def exchange(entry: Attended, x: Tensor) -> Tensor:
            calls, is_any = waiting.get(entry.site.module), entry.site.module in unnumbered
            problem: str | None = "never ran" if calls is None else "ran less often than the original computes it"
            problem = self._why_other(entry, calls[0], x) if calls else problem
            if problem and not is_any:
                self.problems.setdefault(entry.site.module, f"{entry.site.path} {problem}")
            if problem or not calls:
                return x
            return self._go_on(entry, calls.popleft(), x)

        self.wanted = self.oracle.run(original, self.forward, exchange, unnumbered)
        for entry in self.oracle.sites:
            if waiting.get(entry.site.module):
                problem = f"{entry.site.path} ran on another value, or more often, than the original computes"
                self.problems.setdefault(entry.site.module, problem)
        if self.training and not self.problems:  # the gradient of the output must reach each site as in the original
            ours, theirs = _nodes_behind(self.output), _nodes_behind(self.wanted)
            for entry, call, node in self.nodes:
                if node in theirs and call.node not in ours:
                    self.problems[entry.site.module] = f"{entry.site.path} gets no gradient from the output"

    def _why_other(self, entry: Attended, call: _Call, x: Tensor) -> str | None:
        """Why a call is not that of the formula on the value that the original computes."""
        if not isinstance(call.attention, SimAM):
            problem = None if call.given is None else difference(call.given, _as_given(entry, call, x))
            return problem and f"was given another value than the original computes: {problem}"
        truth = Truth(call.attention, entry.site.e_lambda, self.oracle.spatial(entry, x.shape))
        problem = truth.why_far(self._part(entry, x), call.result)
        if problem or call.given is None or not (x.requires_grad and torch.is_grad_enabled()):
            return problem
        return truth.why_gradient_far(x, call.given, call.result)

    def _go_on(self, entry: Attended, call: _Call, x: Tensor) -> Tensor:
        if self.bypassed:
            return x
        result = _as_given(entry, call, call.result, source=1, destination=-1)
        result = torch.where(torch.ones_like(x, dtype=torch.bool), result, x)  # x stays in the graph
        self.nodes.append((entry, call, result.grad_fn))
        return result if type(result) is type(call.result) else result.as_subclass(type(call.result))


def _as_given(entry: Attended, call: _Call, x: Tensor, source: int = -1, destination: int = 1) -> Tensor:
    """As `editing.hooks` does it: attention modules other than SimAM are given N, C, spatial."""
    is_moved = entry.site.channel_dim == -1 and not isinstance(call.attention, SimAM)
    return x.movedim(source, destination) if is_moved else x


def _nodes_behind(output: Any) -> set[Any]:
    """Every autograd node that a backward of the output reaches."""
    found: set[Any] = set()
    ahead: list[Any] = [tensor.grad_fn for tensor in tensors_of(output)]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in found:
            found.add(node)
            ahead += [behind for behind, _ in node.next_functions]
    return found
