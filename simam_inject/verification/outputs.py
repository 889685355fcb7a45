"""Outputs of a model, whatever their structure, compared tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simam_inject.nested import tensors_of


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
