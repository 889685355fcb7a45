"""Compare two runs: outputs bit for bit, gradients within a tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simam_inject.planning.records import Check
from simam_inject.verification.outputs import difference, tensors_of
from simam_inject.verification.runs import Run


@dataclass(frozen=True, slots=True)
class Pair:
    """The same forward of the injected model, and of the original with the formula in plain hooks."""

    live: Run
    oracle: Run
    tolerance: float
    wrong: tuple[str, ...]
    """Sites whose SimAM did not compute the formula."""


def equal(name: str, ours: Any, theirs: Any) -> Check:
    """Equal bit for bit, or how they differ; not run where there is nothing to compare."""
    found = difference(ours, theirs)
    if found is None and not any(True for _ in tensors_of(theirs)):
        return Check(name, None, f"the output, a {type(theirs).__name__}, holds no tensors to compare")
    return Check(name, found is None, found or "bit for bit")


def same_gradients(name: str, pair: Pair) -> Check:
    """Gradients of all parameters are near the oracle's."""
    if pair.live.gradients is None or pair.oracle.gradients is None:
        return Check(name, True, "values; the output has no gradient")
    largest = max((float(wanted.abs().max()) for wanted in pair.oracle.gradients.values()), default=0.0)
    for key, wanted in pair.oracle.gradients.items():
        found = pair.live.gradients.get(key)
        # A bias before a norm has a gradient of zero, and rounding.
        scale = max(float(wanted.abs().max()), 1e-6 * largest, 1e-12)
        if found is None or float((found - wanted).abs().max()) > max(pair.tolerance * 100, 1e-5) * scale:
            return Check(name, False, f"the gradient of {key} differs: it does not pass through a SimAM")
    return Check(name, True, f"{len(pair.oracle.gradients)} gradients")


def has_choices(output: Any) -> bool:
    """The output depends on comparisons (boxes that were kept), which rounding can turn over."""
    return any(not tensor.is_floating_point() for tensor in tensors_of(output))
