"""The checks. Every forward runs on a twin, so the model and its buffers do not change.

At the example's own size: bypassed equals stock, and each SimAM runs on the planned shape. At another size, in float64
where the model allows it: live equals the oracle, in eval and in train mode, values and gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from simam_inject.attention import SimAM
from simam_inject.dataflow.example import Example, copied
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.survey import cannot_run
from simam_inject.dataflow.twin import modules_with_python_forward, twin_of
from simam_inject.editing.attach import Attended, attended_in, detach
from simam_inject.errors import describe_exception
from simam_inject.planning.records import Check, Verification
from simam_inject.verification.comparing import Pair, equal, has_choices, same_gradients
from simam_inject.verification.oracle import Oracle, Shapes, formula
from simam_inject.verification.outputs import all_finite, relative_distance, tensors_of
from simam_inject.verification.runs import SEED, Marks, Parameters, Run, bypassed, dtype_of, run, to_dtype
from simam_inject.verification.unchanged import as_planned, same_tensors

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest distance between live and oracle outputs, relative to the oracle's largest value."""
SAME_WAY = "the example forward runs the modules that were recorded"


def check_model(
    model: nn.Module,
    example: Example,
    before: Marks | None = None,
    *,
    has_parameters: bool = False,
    recorded: set[str] | None = None,
) -> Verification:
    """Run every check on an injected model, which is left as found.

    Args:
        before: `tensor_marks` from before the injection, where they are known.
        has_parameters: the attention has parameters of its own (see `inject`'s `attention`).
        recorded: paths of the modules that ran when the model was planned on this example.
    """
    sites = list(attended_in(model))
    planned = as_planned(model, sites)
    if planned.ok is False:
        return Verification((planned,))
    with same_surroundings(model):
        checks = _Checks(model, sites, example, recorded)
        return Verification((planned, same_tensors(model, sites, before, has_parameters), *checks.all()))


class _Checks:
    def __init__(self, model: nn.Module, sites: list[Attended], example: Example, recorded: set[str] | None) -> None:
        self.model = model
        self.recorded = recorded
        self.sites = sites
        self.example = example
        self.oracle = Oracle(sites)
        self.parameters = Parameters()
        self.wrong: list[str] = []
        """Sites whose SimAM did not compute the formula."""
        self.ran: Counter[str] = Counter()
        """How often each SimAM ran in the last live forward."""
        self.names: dict[str, Counter[str]] = {}
        """Names of the values in the first forward of the original; see `Oracle.names`."""
        self.failure = ""
        """Why the last pair did not run."""

    def all(self) -> list[Check]:
        """Every check that runs the model."""
        shapes: Shapes = {}
        stock = self._stock()
        ran: set[str] = set()
        paths = {id(module): path for path, module in modules_with_python_forward(stock)}
        for _, module in modules_with_python_forward(stock):
            module.register_forward_pre_hook(partial(_enter, ran, paths))
        try:
            with self.oracle.noting_shapes(stock, shapes):
                plain = run(stock, self.example, training=False)
        except Exception as error:
            raise cannot_run(self.model, self.example, error) from error
        self.parameters.look_for_writes()
        if self.recorded is not None and ran != self.recorded:
            first = min(ran ^ self.recorded)
            does = ("runs", "did not") if first in ran else ("does not run", "did")
            return [Check(SAME_WAY, False, f"{first} {does[0]}, and {does[1]} while the model was recorded")]
        self.names = self.oracle.names
        checks = [self._bypassed(plain), self._live(plain)]
        small, size, pair = self._small_pair(shapes)
        checks.append(self._against(f"equal to the formula in hooks on the original, at {size}", pair))
        return [*checks, *self._training(small)]

    # Twins and runs

    def _stock(self, dtype: torch.dtype | None = None) -> nn.Module:
        twin = twin_of(self.model, self.parameters.convert(dtype))
        detach(twin)
        return twin

    def _injected(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A twin with every SimAM at full strength."""
        twin = twin_of(self.model, self.parameters.convert(dtype))
        for entry in attended_in(twin):
            if isinstance(entry.attention, SimAM):
                entry.attention.strength = 1.0
        return twin

    def _small_pair(self, shapes: Shapes) -> tuple[Example, str, Pair | None]:
        """Live and oracle at another image size and batch, smaller where the model takes it; else at the example's."""
        for candidate in (self.example.shrunk(), self.example.with_size()):
            if candidate is not None:
                more = candidate.with_batch(1) or candidate
                pair = self._pair(more, training=False, others=shapes)
                if pair is not None:
                    return more, "another input size", pair
        more = self.example.with_batch(1) or self.example
        return more, "the example's size", self._pair(more, training=False)

    def _pair(self, example: Example, *, training: bool, others: Shapes | None = None) -> Pair | None:
        """Live and oracle forwards in float64, or in the model's own dtype; None where the model does not run so."""
        for dtype in (torch.float64, None):
            given = copied if dtype is None else to_dtype(dtype)
            try:
                stock, live = self._stock(dtype), self._injected(dtype)
                if not training:
                    self.oracle.unnamed = set()
                if others is not None:
                    noted: Shapes = {}
                    noting = self._stock()  # a forward may count its calls: each twin runs once
                    with self.oracle.noting_shapes(noting, noted):
                        run(noting, example, training=training)
                    self.oracle.find_axes(others, noted)
                    self.oracle.leave_out_unnamed(self.names)
                with self.oracle.attending(stock):
                    expected = run(stock, example, training=training, convert=given, gradients=training)
                self.wrong, self.ran = [], Counter()
                with self._watching_formula(live):
                    found = run(live, example, training=training, convert=given, gradients=training)
            except Exception as error:
                self.failure = describe_exception(error)
                continue
            wide = dtype_of(found.output) is torch.float64
            return Pair(found, expected, TOLERANCE[torch.float64 if wide else torch.float32], tuple(self.wrong))
        return None

    @contextmanager
    def _watching_formula(self, live: nn.Module) -> Iterator[None]:
        """Compare what each SimAM gives with the formula, and bypass those that the oracle cannot reach."""
        handles = []
        for entry in attended_in(live):
            if not isinstance(entry.attention, SimAM):
                continue
            handles.append(entry.attention.register_forward_hook(self._watcher(entry)))
            if entry.site["path"] in self.oracle.unnamed and entry.site["edit"]["kind"] == "rewritten":
                handles.append(entry.attention.register_forward_hook(lambda _module, args, _output: args[0]))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watcher(self, entry: Attended) -> Callable[..., None]:
        site, attention = entry.site, entry.attention
        assert isinstance(attention, SimAM)

        def watch(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            self.ran[site["path"]] += 1
            x = args[0].detach()
            spatial = self.oracle.spatial.get(site["path"])
            if spatial is None:
                spatial = tuple(range(2, x.dim())) if site["channel_dim"] == 1 else tuple(range(1, x.dim() - 1))
            wanted = formula(x, site["e_lambda"], spatial, 1.0, attention.gain)
            error = relative_distance(output, wanted)
            if isinstance(error, str):
                self.wrong.append(f"{site['path']} {error} than the formula")
            elif not error <= _LOCAL.get(x.dtype, 2e-2):
                self.wrong.append(f"{site['path']} differs from the formula by {error:.2g} of its largest value")

        return watch

    # Checks

    def _bypassed(self, plain: Run) -> Check:
        twin = twin_of(self.model, self.parameters.convert())
        with bypassed(twin):
            found = run(twin, self.example, training=False)
        return self._equal("bypassed: equal to the original in eval mode", found, plain, self.example, training=False)

    def _equal(self, name: str, found: Run, plain: Run, example: Example, *, training: bool) -> Check:
        """Equal bit for bit to the original, also to one without the hooks that look at its shapes.

        `nn.MultiheadAttention` and its kin compute in another way, within rounding, where there are hooks.
        """
        check = equal(name, found.output, plain.output)
        if check.ok is False:
            check = equal(name, found.output, run(self._stock(), example, training=training).output)
        return check

    def _live(self, plain: Run) -> Check:
        name = "every SimAM ran, on the planned shape, with a finite result"
        live = self._injected()
        entries = list(attended_in(live))
        shapes: dict[int, list[tuple[int, ...]]] = {place: [] for place in range(len(entries))}
        holders: Counter[int] = Counter()
        handles = []
        for place, entry in enumerate(entries):
            if entry.attention is not None:
                handles.append(entry.attention.register_forward_hook(_noting(shapes[place])))
            handles.append(entry.holder.register_forward_pre_hook(_counting(holders, place)))
        output = run(live, self.example, training=False).output
        for handle in handles:
            handle.remove()
        idle = [entry.site["path"] for place, entry in enumerate(entries) if not holders[place]]
        if len(idle) == len(entries):
            return Check(name, False, f"{idle[0]} never ran")
        for place, entry in enumerate(entries):
            problem = _why_not_live(entry, shapes[place], holders[place])
            if problem is not None:
                return Check(name, False, problem)
        if not all_finite(output) and all_finite(plain.output):
            return Check(name, False, "the output has NaN or infinity with SimAM on")
        left_out = f"; the example does not reach {', '.join(idle[:3])}" if idle else ""
        return Check(name, True, f"{len(entries) - len(idle)} of {len(entries)}{left_out}")

    def _against(self, name: str, pair: Pair | None) -> Check:
        if pair is None:
            return Check(name, None, f"the model does not run there: {self.failure:.150}")
        if pair.wrong:
            return Check(name, False, pair.wrong[0])
        if not list(tensors_of(pair.oracle.output)):
            return Check(name, None, f"the output, a {type(pair.oracle.output).__name__}, holds no tensors to compare")
        found = relative_distance(pair.live.output, pair.oracle.output)
        if isinstance(found, str):
            return Check(name, None if has_choices(pair.oracle.output) else False, found)
        if not found <= pair.tolerance:
            return Check(name, False, f"differs by {found:.2g} of the largest value")
        return Check(name, True, f"within {found:.1g} of the largest value")

    def _training(self, small: Example) -> list[Check]:
        name, live_name = (
            "bypassed: equal to the original in train mode",
            "equal to the formula in train mode, gradients included",
        )
        failure = ""
        for example in (small, self.example.with_batch(1) or self.example, self.example):
            try:
                with self.oracle.noting_shapes(stock := self._stock(), {}):
                    plain = run(stock, example, training=True)
                self.oracle.leave_out_unnamed(self.names)
                self.parameters.look_for_writes()
                break
            except Exception as error:  # batch norm on one value, a detector without targets
                failure = describe_exception(error)
        else:
            reason = f"the original does not run in train mode on this example ({failure:.120})"
            return [Check(name, None, reason), Check(live_name, None, reason)]
        twin = twin_of(self.model, self.parameters.convert())
        with bypassed(twin):
            found = run(twin, example, training=True)
        checks = [self._equal(name, found, plain, example, training=True)]
        pair = self._pair(example, training=True)
        check = self._against(live_name, pair)
        if check.ok and pair is not None:
            check = self._idle(live_name, example) or same_gradients(live_name, pair)
        return [*checks, check]

    def _idle(self, name: str, example: Example) -> Check | None:
        """A SimAM inside a forward that computes other values in train mode, and among them not this one."""
        inside = {entry.site["path"] for entry in self.sites if entry.site["edit"]["kind"] == "rewritten"}
        for seed in range(_CHANCES):
            idle = {path for path in self.oracle.unnamed if path in inside and not self.ran[path]}
            if not idle:
                return None
            live = self._injected()
            with self._watching_formula(live):
                run(live, example, training=True, seed=SEED + 1 + seed)
        return Check(name, False, f"{min(idle)} never ran: in train mode its forward computes something else")


_CHANCES = 8
"""Forwards that a SimAM has to run in one of: a branch may be dropped at random."""
_LOCAL = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}


def _noting(shapes: list[tuple[int, ...]]) -> Callable[..., None]:
    def note(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        shapes.append(tuple(output.shape))

    return note


def _enter(ran: set[str], paths: dict[int, str], module: nn.Module, _args: Any) -> None:
    if id(module) in paths:  # and no copy that a forward makes
        ran.add(paths[id(module)])


def _counting(counts: Counter[int], place: int) -> Callable[..., None]:
    def count(_module: nn.Module, _args: Any) -> None:
        counts[place] += 1

    return count


def _why_not_live(entry: Attended, shapes: list[tuple[int, ...]], calls: int) -> str | None:
    site = entry.site
    if not calls:  # a head for training alone
        return None
    if not shapes:
        return f"{site['path']} never ran"
    if len(shapes) != calls and site["edit"]["kind"] != "rewritten":
        return f"{site['path']} ran {len(shapes)} times in {calls} call(s) of {entry.path or 'the model'}"
    channels = {shape[site["channel_dim"]] for shape in shapes}
    if site["shape"][site["channel_dim"]] not in channels or len(shapes[0]) != len(site["shape"]):
        return f"{site['path']} ran on {shapes[0]}, planned {tuple(site['shape'])}"
    return None
