"""Verdicts on the outputs and gradients of two runs."""

from __future__ import annotations

from typing import Any

from simam_inject.planning.records import Check
from simam_inject.verification.outputs import difference, tensors_of
from simam_inject.verification.runs import Run


def equal(name: str, ours: Any, theirs: Any) -> Check:
    """Equal bit for bit, or how they differ; not run where there is nothing to compare."""
    found = difference(ours, theirs)
    if found is None and not any(True for _ in tensors_of(theirs)):
        return Check(name, None, f"the output, a {type(theirs).__name__}, holds no tensors to compare")
    return Check(name, found is None, found or "bit for bit")


def same_gradients(name: str, live: Run, oracle: Run, tolerance: float) -> Check:
    """Gradients of all parameters are near the oracle's."""
    if live.gradients is None or oracle.gradients is None:
        return Check(name, True, "values; the output has no gradient")
    for key, wanted in oracle.gradients.items():
        found = live.gradients.get(key)
        scale = float(wanted.abs().max())
        if found is None or float((found - wanted).abs().max()) > max(tolerance * 100, 1e-5) * max(scale, 1e-9):
            return Check(
                name, False, f"the gradient of {key} is another than the oracle's: it does not pass through a SimAM"
            )
    return Check(name, True, f"{len(oracle.gradients)} gradients")


def has_choices(output: Any) -> bool:
    """The output depends on comparisons (boxes that were kept), which rounding can turn over."""
    return any(not tensor.is_floating_point() for tensor in tensors_of(output))
