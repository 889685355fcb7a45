"""The proof: open the file, count its sites against the model's, run it beside eager.

Counting and comparing answer for one another. A file that lost a site differs from eager by far more than rounding; a
graph that holds every site, each of them reaching the output, cannot agree with eager by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.attention.functional import LARGEST, SMALLEST
from simam_inject.discovery.naming import join
from simam_inject.export.forms import Artefact
from simam_inject.export.gates import find_gates
from simam_inject.export.records import Comparison, ExportedSite, ExportError, Gate, LostSiteError
from simam_inject.rewriting.rewriter import edits_in
from simam_inject.rewriting.unfused import unfused
from simam_inject.tracing.inputs import Example
from simam_inject.tracing.snapshot import mode, same_buffers, same_random_state, unchanged
from simam_inject.verification.outputs import tensors_in
from simam_inject.verification.verifier import bypassed

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""By dtype of the input: one order of magnitude and more above rounding in deep networks, far below a lost site."""
_HALF_TOLERANCE = 1e-2
_LAMBDA_PRECISION = 0.05
"""Relative; a lambda that was folded into a float16 constant is not exact."""


@contextmanager
def as_exported(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, unfused, keeps no gradients and computes in full float32; then as found."""
    with ExitStack() as stack:
        for context in (unchanged(model), same_buffers(model), same_random_state(), mode(model, False)):
            stack.enter_context(context)
        stack.enter_context(unfused(model))
        # A GPU's TensorFloat-32 convolutions differ from any other float32 by 1e-3.
        stack.enter_context(torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False))
        stack.enter_context(torch.no_grad())
        yield


def expected_sites(model: nn.Module, example: Example) -> tuple[ExportedSite, ...]:
    """Every SimAM of the model with how often eager runs it. Call inside `as_exported`."""
    runs: Counter[SimAM] = Counter()
    attentions: dict[str, tuple[str, SimAM]] = {}
    for scope, holder, edit in edits_in(model):
        attention = getattr(holder, edit.child)
        attentions[join(scope, edit.child)] = (join(scope, edit.value), attention)
    handles = [a.register_forward_hook(lambda module, *_: runs.update([module])) for _, a in attentions.values()]
    try:
        example.given_to(model)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        ExportedSite(path, module, attention.e_lambda, runs[attention], "name" if runs[attention] else "idle")
        for module, (path, attention) in attentions.items()
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
    wrong = [
        (site, gate)
        for site in expected
        for gate in gates
        if gate.module == site.module and gate.e_lambda is not None and not _same_lambda(gate, site)
    ]
    if wrong:
        site, gate = wrong[0]
        raise LostSiteError(f"{site.path} has lambda {gate.e_lambda:g} in the file and {site.e_lambda:g} in the model")
    return tuple(found)


def compare(
    model: nn.Module,
    artefact: Artefact,
    example: Example,
    sites: tuple[ExportedSite, ...],
    tolerance: float | None,
    *,
    complete: bool = True,
) -> Comparison:
    """Run both on the example. Call inside `as_exported`.

    Args:
        complete: the file returns all that eager does. Otherwise it may leave out the last of it, as ultralytics leaves
            out what only a loss needs.

    Raises:
        LostSiteError: they differ by more than the tolerance, or the file's output is not finite.
    """
    ours = list(tensors_in(example.given_to(model)))
    modules = dict(model.named_modules())
    with bypassed([module for site in sites if isinstance(module := modules[site.module], SimAM)]):
        plain = list(tensors_in(example.given_to(model)))
    shapes = tuple(tuple(tensor.shape) for tensor in example.tensors)
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
    try:
        theirs = artefact.run(example)
    except Exception as error:
        raise ExportError(f"the file does not run on an input of {shown}: {first_line(error)}") from None
    left_out = len(ours) - len(theirs)
    ours, plain = _beginnings(theirs, ours, plain, complete=complete)
    difference, effect = relative_difference(theirs, ours), relative_difference(plain, ours)
    comparison = Comparison(shapes, difference, effect, left_out)
    allowed = tolerance_for(example, tolerance)
    if not comparison.difference <= allowed:  # NaN too
        raise LostSiteError(
            f"the file's output differs from eager on an input of {shown}: {comparison.difference:.3g} relative, "
            f"{allowed:g} allowed"
        )
    return comparison


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
        scale = reference.abs().max().item() or 1.0
        difference = (wide - reference).abs().max().item() / scale
        if difference != difference:
            return difference
        worst = max(worst, difference)
    return worst


def _beginnings(
    theirs: list[Tensor], ours: list[Tensor], plain: list[Tensor], *, complete: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Of eager's outputs, with SimAM and without, those that stand for the file's.

    Raises:
        LostSiteError: there are none.
    """
    if not theirs or len(theirs) > len(ours) or (complete and len(theirs) < len(ours)):
        raise LostSiteError(f"the file has {len(theirs)} outputs, the model {len(ours)}")
    for index, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if their.shape != our.shape:
            raise LostSiteError(
                f"output {index} of the file has the shape {tuple(their.shape)}, that of the model {tuple(our.shape)}"
            )
    return ours[: len(theirs)], plain[: len(theirs)]


def _same_lambda(gate: Gate, site: ExportedSite) -> bool:
    wanted = min(max(site.e_lambda, SMALLEST), LARGEST)
    return gate.e_lambda is not None and abs(gate.e_lambda - wanted) <= _LAMBDA_PRECISION * wanted


def _loss(lost: list[ExportedSite], expected: tuple[ExportedSite, ...], gates: tuple[Gate, ...]) -> str:
    dead = {gate.module for gate in gates if not gate.is_live}
    shown = [site.path + (" (computed, but nothing reads it)" if site.module in dead else "") for site in lost[:5]]
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    live = sum(gate.is_live for gate in gates)
    wanted = sum(site.runs for site in expected)
    return (
        f"the file lost {len(lost)} of {len(expected)} SimAM sites: {', '.join(shown)}{more}. "
        f"Its graph holds {live} live of {wanted}"
    )


def first_line(error: BaseException) -> str:
    """What a library said, short."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
