"""The proof: open the file, count its sites against the model's, run it beside eager.

Counting and comparing answer for one another. A file that lost a site differs from eager by far more than rounding; a
graph that holds every site, each of them reaching the output, cannot agree with eager by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.attention.functional import LARGEST, SMALLEST
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.twin import set_mode, to_clone, twin_of
from simam_inject.editing.attach import attended_in
from simam_inject.export.gates import Graph, find_gates
from simam_inject.export.records import Comparison, ExportedSite, ExportError, Gate, LostSiteError
from simam_inject.verification import bypassed
from simam_inject.verification.outputs import tensors_of

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""By dtype of the input: one order of magnitude and more above rounding in deep networks, far below a lost site."""
_HALF_TOLERANCE = 1e-2
_LAMBDA_PRECISION = 0.05
"""Relative; a lambda that was folded into a float16 constant is not exact."""


class Artefact(Protocol):
    """An exported file, opened."""

    graph: Graph

    def run(self, example: Example) -> list[Tensor]:
        """Every tensor that the exported program returns, on the CPU or where the program keeps its weights."""


@contextmanager
def as_exported(model: nn.Module) -> Iterator[nn.Module]:
    """A twin of the model in eval mode, over tensors of its own: whatever is done to it, the model is as it was.

    Inside, no gradients are kept, and a GPU computes in full float32 (TensorFloat-32 differs by 1e-3).
    """
    exact = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
    with same_surroundings(model), torch.no_grad(), exact:
        twin = twin_of(model, to_clone)
        set_mode(twin, False)
        yield twin


def expected_sites(model: nn.Module, example: Example) -> tuple[ExportedSite, ...]:
    """Every SimAM of the model with how often eager runs it in its present mode."""
    runs: Counter[str] = Counter()
    sites, handles = [], []
    for entry in attended_in(model):
        insertion, attention = entry.insertion, entry.attention
        if isinstance(attention, SimAM):
            sites.append(ExportedSite(insertion.path, insertion.module, float(attention.e_lambda), 0, "idle"))
            handles.append(attention.register_forward_hook(lambda *_, name=insertion.module: runs.update([name])))
    try:
        example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        replace(site, runs=runs[site.module], found_by="name") if runs[site.module] else site for site in sites
    )


def count_sites(artefact: Artefact, expected: tuple[ExportedSite, ...]) -> tuple[ExportedSite, ...]:
    """The expected sites with how each was found in the file's graph.

    Raises:
        LostSiteError: one is not there, does not reach the output, or has another lambda.
    """
    gates = find_gates(artefact.graph)
    known = {site.module for site in expected}
    named = Counter(gate.module for gate in gates if gate.is_live and gate.module in known)
    unnamed = [gate for gate in gates if gate.is_live and gate.module not in known and gate.e_lambda is not None]
    found, lost = [], []
    for site in expected:
        missing = site.runs - named[site.module]
        taken = [gate for gate in unnamed if _same_lambda(gate, site)][: max(missing, 0)]
        if len(taken) < missing:
            lost.append(site)
            continue
        for gate in taken:
            unnamed.remove(gate)
        found.append(replace(site, found_by="structure") if taken else site)
    if lost:
        raise LostSiteError(_loss(lost, expected, gates))
    by_module = {site.module: site for site in expected}
    for gate in gates:
        at = by_module.get(gate.module)
        if at is not None and gate.e_lambda is not None and not _same_lambda(gate, at):
            raise LostSiteError(f"{at.path} has lambda {gate.e_lambda:g} in the file and {at.e_lambda:g} in the model")
    return tuple(found)


def compare(
    model: nn.Module, artefact: Artefact, example: Example, tolerance: float | None, *, complete: bool = True
) -> Comparison:
    """Run both on the example.

    Args:
        model: in eval mode.
        complete: the file returns all that eager does. Otherwise it may leave out the last of it, as ultralytics leaves
            out what only a loss needs.

    Raises:
        LostSiteError: they differ by more than the tolerance, or the file's output is not finite.
    """
    ours = list(tensors_of(example.run(model)))
    with bypassed(model):
        plain = list(tensors_of(example.run(model)))
    shapes = tuple(tuple(tensor.shape) for tensor in example.tensors)
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
    try:
        theirs = artefact.run(example)
    except Exception as error:
        raise ExportError(f"the file does not run on an input of {shown}: {first_line(error)}") from None
    left_out = len(ours) - len(theirs)
    if not theirs or left_out < 0 or (complete and left_out):
        raise LostSiteError(f"the file has {len(theirs)} outputs, the model {len(ours)}")
    ours, plain = ours[: len(theirs)], plain[: len(theirs)]
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their.shape != our.shape:
            raise LostSiteError(
                f"output {index} of the file has the shape {tuple(their.shape)}, that of the model {tuple(our.shape)}"
            )
    difference, effect = relative_difference(theirs, ours), relative_difference(plain, ours)
    allowed = tolerance_for(example, tolerance)
    if not difference <= allowed:  # NaN too
        raise LostSiteError(
            f"the file's output differs from eager on an input of {shown}: {difference:.3g} relative, "
            f"{allowed:g} allowed"
        )
    return Comparison(shapes, difference, effect, left_out)


def tolerance_for(example: Example, tolerance: float | None) -> float:
    """The tolerance given, else the default for the input's dtype."""
    if tolerance is not None:
        return tolerance
    kinds = [tensor.dtype for tensor in example.tensors if tensor.is_floating_point()]
    return max((TOLERANCES.get(kind, _HALF_TOLERANCE) for kind in kinds), default=TOLERANCES[torch.float32])


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest |one - other| over largest |other|, the worst of all outputs, which have the same shapes in both."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if not a.numel():
            continue
        wide, reference = a.double().cpu(), b.double().cpu()
        difference = (wide - reference).abs().max().item() / (reference.abs().max().item() or 1.0)
        if difference != difference:
            return difference
        worst = max(worst, difference)
    return worst


def first_line(error: BaseException) -> str:
    """What a library said, short."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _same_lambda(gate: Gate, site: ExportedSite) -> bool:
    wanted = min(max(site.e_lambda, SMALLEST), LARGEST)
    return gate.e_lambda is not None and abs(gate.e_lambda - wanted) <= _LAMBDA_PRECISION * wanted


def _loss(lost: list[ExportedSite], expected: tuple[ExportedSite, ...], gates: tuple[Gate, ...]) -> str:
    dead = {gate.module for gate in gates if not gate.is_live}
    shown = [site.path + (" (computed, but nothing reads it)" if site.module in dead else "") for site in lost[:5]]
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    live, wanted = sum(gate.is_live for gate in gates), sum(site.runs for site in expected)
    return (
        f"the file lost {len(lost)} of {len(expected)} SimAM sites: {', '.join(shown)}{more}. "
        f"Its graph holds {live} live of {wanted}"
    )
