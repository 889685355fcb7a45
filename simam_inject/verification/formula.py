"""An independent implementation of the formula, and how far a SimAM may be from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simam_inject.attention import SimAM
from simam_inject.errors import describe_exception
from simam_inject.verification.outputs import relative_distance

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Largest distance of a SimAM from the formula, relative to the largest value, by dtype."""


def formula(x: Tensor, e_lambda: float, spatial: tuple[int, ...], gain: float = 1.0) -> Tensor:
    """SimAM of strength 1 in the dtype of `x`, written from the paper, over the given spatial dimensions."""
    others = max(math.prod(x.shape[dim] for dim in spatial) - 1, 1)
    squares = (x - x.mean(spatial, keepdim=True)).square()
    variance = squares.sum(spatial, keepdim=True) / others
    gate = torch.sigmoid(squares / (4 * (variance + e_lambda)) + 0.5)
    return x * (gain * gate)


@dataclass(frozen=True, slots=True)
class Truth:
    """What a SimAM has to compute, in float64."""

    attention: SimAM
    e_lambda: float
    spatial: tuple[int, ...]

    def why_far(self, x: Tensor, result: Tensor) -> str | None:
        """How a result for `x` differs from the formula by more than rounding; the same in float64 shows more."""
        if result.dtype is not x.dtype:
            return f"returned {result.dtype} for {x.dtype}"
        with torch.no_grad():
            wide = x.detach().double()
            wanted, found = self._formula(wide), self.attention.forward(wide)
        return self._why_far(wide, result, wanted, x.dtype) or self._why_far(wide, found, wanted, torch.float64)

    def why_gradient_far(self, x: Tensor, given: Tensor, result: Tensor) -> str | None:
        """How the gradient from a result to the very tensor that the SimAM was given, equal to `x`, differs."""
        weights = torch.linspace(0.5, 1.5, x.numel(), device=x.device).reshape(x.shape)
        try:
            (found,) = torch.autograd.grad(result, given, weights.to(result.dtype), retain_graph=True)
        except RuntimeError as error:
            return f"has no gradient: {describe_exception(error):.150}"
        with torch.enable_grad():
            wide = x.detach().double().requires_grad_()
            (wanted,) = torch.autograd.grad(self._formula(wide), wide, weights.double())
        problem = self._why_far(wide.detach(), found, wanted, x.dtype, factor=10)
        return problem and f"has another gradient: it {problem}"

    def _formula(self, x: Tensor) -> Tensor:
        return formula(x, self.e_lambda, self.spatial, gain=self.attention.gain)

    def _why_far(self, x: Tensor, found: Tensor, wanted: Tensor, dtype: torch.dtype, *, factor: int = 1) -> str | None:
        distance = relative_distance(found, wanted.to(found.dtype))
        if isinstance(distance, str):
            return f"{distance} than the formula"
        limit = factor * _ROUNDING.get(dtype, 2e-2)
        if distance > limit:  # subtracting a mean magnifies the rounding of statistics, which are float32 at least
            variance, mean = torch.var_mean(x, self.spatial, correction=0)
            magnified = float((mean.abs() / (variance + self.e_lambda).sqrt()).nan_to_num(0.0, 0.0).max())
            limit += factor * 8 * magnified * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        return None if distance <= limit else f"differs from the formula by {distance:.2g} of its largest value"
