"""Outputs of a model, whatever their structure, compared tensor by tensor, and those of a SimAM with the formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simam_inject.attention import SimAM
from simam_inject.errors import describe_exception
from simam_inject.nested import tensors_of

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Largest distance of a SimAM from the formula, relative to the largest value, by dtype."""


def difference(one: Any, other: Any) -> str | None:
    """How two outputs differ, in a few words; None if their tensors are equal bit for bit (NaN equals NaN)."""
    ours, theirs = (
        [tensor.detach().to_dense() if tensor.is_mkldnn else tensor.detach() for tensor in tensors_of(output)]
        for output in (one, other)
    )
    try:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())
    return None


def relative_distance(one: Any, other: Any) -> float | str:
    """Largest difference of two outputs, relative to the largest value of `other`.

    Where they cannot be compared, words that fit before "than": `has another shape`.
    """
    ours, theirs = ([_real(tensor) for tensor in tensors_of(output)] for output in (one, other))
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return "has another shape"
    distance = 0.0
    for found, wanted in zip(ours, theirs, strict=True):
        if not wanted.is_floating_point() or not wanted.numel():
            continue
        a, b = found.double(), wanted.double()
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()):
            return "has NaN or infinity at other places"
        if not finite.all():
            a, b = a.where(finite, 0.0), b.where(finite, 0.0)
        scale = float(b.abs().max()) or 1.0
        distance = max(distance, float((a - b).abs().max()) / scale)
    return distance


def _real(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense()
    return torch.view_as_real(dense) if dense.is_complex() else dense


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
