"""The proof: open the file, count its sites against the model's, run it beside eager.

Counting and comparing answer for one another. A file that lost a site differs from eager by far more than rounding; a
graph that holds every site, each of them reaching the output, cannot agree with eager by chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from simam_inject.attention import SimAM
from simam_inject.attention.functional import LARGEST, SMALLEST
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.twin import set_mode, to_clone, twin_of
from simam_inject.editing.attach import attended_in
from simam_inject.errors import describe_exception, shortened
from simam_inject.export.gates import Artefact, Gate, find_gates
from simam_inject.export.records import Comparison, ExportedSite, ExportError, LostSiteError
from simam_inject.verification import bypassed
from simam_inject.verification.outputs import relative_distance, tensors_of

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""By dtype of the input: one order of magnitude and more above rounding in deep networks, far below a lost site."""
_HALF_TOLERANCE = 1e-2
_LAMBDA_PRECISION = 0.05
"""Relative; a lambda that was folded into a float16 constant is not exact."""


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
    """The expected sites with how each was found in the file's graph: by name, else by the formula and its lambda.

    Raises:
        LostSiteError: one is not there, does not reach the output, or has another lambda.
    """
    gates = find_gates(artefact.graph)
    known = {site.module: site for site in expected}
    named = Counter(gate.module for gate in gates if gate.is_live)
    unnamed = [gate for gate in gates if gate.is_live and gate.module not in known]
    found, lost = [], []
    for site in expected:
        missing = max(site.runs - named[site.module], 0)
        taken = [gate for gate in unnamed if _has_lambda(gate, site)][:missing]
        for gate in taken:
            unnamed.remove(gate)
        found.append(replace(site, found_by="structure") if taken else site)
        if len(taken) < missing:
            lost.append(site)
    if lost:
        dead = {gate.module for gate in gates if not gate.is_live}
        paths = [
            site.path + (" (computed, but its output is never used)" if site.module in dead else "") for site in lost
        ]
        live, wanted = sum(gate.is_live for gate in gates), sum(site.runs for site in expected)
        raise LostSiteError(
            f"the file lost {len(lost)} of {len(expected)} SimAM sites: {shortened(paths)}. "
            f"Its graph holds {live} live of {wanted}"
        )
    for gate in gates:
        at = known.get(gate.module)
        if at is not None and gate.e_lambda is not None and not _has_lambda(gate, at):
            raise LostSiteError(f"{at.path} has lambda {gate.e_lambda:g} in the file and {at.e_lambda:g} in the model")
    return tuple(found)


def _has_lambda(gate: Gate, site: ExportedSite) -> bool:
    wanted = min(max(site.e_lambda, SMALLEST), LARGEST)
    return gate.e_lambda is not None and math.isclose(gate.e_lambda, wanted, rel_tol=_LAMBDA_PRECISION)


def compare(
    model: nn.Module, artefact: Artefact, example: Example, tolerance: float, *, complete: bool = True
) -> Comparison:
    """Run both on the example.

    Args:
        model: in eval mode.
        tolerance: largest difference that is allowed.
        complete: the file returns all that eager does. Otherwise it may leave out the last of it, as ultralytics leaves
            out what only a loss needs.

    Raises:
        LostSiteError: they differ by more than the tolerance, or the file's output is not finite where eager's is.
    """
    ours = list(tensors_of(example.run(model)))
    with bypassed(model):
        plain = list(tensors_of(example.run(model)))
    shapes = tuple(tuple(tensor.shape) for tensor in example.tensors)
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
    try:
        theirs = artefact.run(example)
    except Exception as error:
        raise ExportError(f"the file does not run on an input of {shown}: {describe_exception(error)}") from None
    left_out = len(ours) - len(theirs)
    if not theirs or left_out < 0 or (complete and left_out):
        raise LostSiteError(f"the file has {len(theirs)} outputs, the model {len(ours)}")
    for index, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if their.shape != our.shape:
            raise LostSiteError(
                f"output {index} of the file has the shape {tuple(their.shape)}, that of the model {tuple(our.shape)}"
            )
    difference, effect = (relative_difference(found, ours[: len(theirs)]) for found in (theirs, plain[: len(theirs)]))
    if not difference <= tolerance:  # NaN too
        raise LostSiteError(
            f"the file's output differs from eager on an input of {shown}: {difference:.3g} relative, "
            f"{tolerance:g} allowed"
        )
    return Comparison(shapes, difference, effect, left_out)


def tolerance_for(example: Example) -> float:
    """The default for the input's dtype."""
    kinds = [tensor.dtype for tensor in example.tensors if tensor.is_floating_point()]
    return max((TOLERANCES.get(kind, _HALF_TOLERANCE) for kind in kinds), default=TOLERANCES[torch.float32])


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest |one - other| over largest |other|, the worst of all outputs, which have the same shapes in both.

    NaN where one of the two is not finite and the other is.
    """
    found = relative_distance(*([tensor.double().cpu() for tensor in tensors] for tensors in (one, other)))
    return math.nan if isinstance(found, str) else found
