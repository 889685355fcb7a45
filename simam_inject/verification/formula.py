"""An independent implementation of the formula in float64, and the record of one call of a SimAM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from simam_inject.attention import SimAM
from simam_inject.editing.attach import Attended
from simam_inject.verification.outputs import relative_distance

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Largest distance of a SimAM from the formula, relative to the largest value, by dtype."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a SimAM, with copies of its tensors, since the forward may write into them."""

    attention: nn.Module
    shape: torch.Size
    given: Tensor
    result: Tensor
    edges: tuple[GradientEdge, GradientEdge] | None
    """Where autograd reaches the two; None if no gradient passes."""


def formula(x: Tensor, e_lambda: float, spatial: tuple[int, ...], strength: float = 1.0, gain: float = 1.0) -> Tensor:
    """SimAM in float64, written from the paper, over the given spatial dimensions."""
    wide = x.double()
    positions = math.prod(x.shape[dim] for dim in spatial)
    difference = (wide - wide.mean(spatial, keepdim=True)).square()
    variance = difference.sum(spatial, keepdim=True) / max(positions - 1, 1)
    gate = torch.sigmoid(difference / (4 * (variance + e_lambda)) + 0.5)
    return (wide * ((1 - strength) + strength * gain * gate)).to(x.dtype)


def mean_over_deviation(x: Tensor, e_lambda: float, spatial: tuple[int, ...]) -> float:
    """By how much subtracting the mean magnifies the rounding of a map: |mean| / sqrt(variance + lambda), at most."""
    wide = x.detach().double()
    spread = (wide.var(spatial, correction=0) + e_lambda).sqrt()
    found = float((wide.mean(spatial).abs() / spread).max()) if x.numel() else 0.0
    return found if math.isfinite(found) else 0.0


def why_not_bypassed(entry: Attended, call: Call) -> str | None:
    """A SimAM that is bypassed returns what it is given."""
    if not isinstance(call.attention, SimAM):
        return None
    call.attention.bypassed = True
    with torch.no_grad():
        found = call.attention.forward(call.given)
    call.attention.bypassed = False
    return None if found is call.given else f"{entry.site.path} does not return its input while it is bypassed"


def why_far(found: Tensor, wanted: Tensor, what: str, *, factor: int = 1, magnified: float = 0.0) -> str | None:
    """How a tensor differs from another by more than rounding.

    Args:
        magnified: see `mean_over_deviation`. Statistics are float32 for half precision too.
    """
    if found.dtype != wanted.dtype:
        return f"is {found.dtype}, and {what} {wanted.dtype}"
    distance = 0.0 if torch.equal(found, wanted) else relative_distance(found, wanted)
    if isinstance(distance, str):
        return f"{distance} than {what}"
    epsilon = torch.finfo(torch.float64 if found.dtype is torch.float64 else torch.float32).eps
    if not distance <= factor * (_ROUNDING.get(found.dtype, 2e-2) + 8 * epsilon * magnified):
        return f"differs from {what} by {distance:.2g} of its largest value"
    return None
