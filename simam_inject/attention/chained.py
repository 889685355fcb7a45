"""SimAM with its neighbours, for inference: a norm folded to scale and shift, a residual, an activation.

    norm first    z = s x + t;  y = act(simam(z) + residual)
    norm last     y = act(s simam(x) + t + residual)

With z = s x + t the deviation is s (x - mu), so the statistics of x serve z as well. All of it is done while a piece
(on a CPU) or a plane (on a GPU) is at hand: the neighbours cost no pass over memory of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from simam_inject.attention.chunked import FORWARD_PIECE, NO_REDUCTION, pieces, spatial
from simam_inject.attention.composite import less_one, positions, statistics_dtype, widen
from simam_inject.attention.eager import kernels_on

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": torch.relu_,
        "relu6": lambda x: F.hardtanh_(x, 0.0, 6.0),
        "silu": lambda x: F.silu(x, inplace=True),
        "hardswish": lambda x: F.hardswish(x, inplace=True),
    }
)
"""In-place activations by kind."""


class Chain(NamedTuple):
    """What surrounds one SimAM."""

    scale: Tensor
    """Of the folded norm, one number per channel."""
    shift: Tensor
    norm_first: bool
    residual: Tensor | None
    """Of the shape of x."""
    activation: str | None
    """A key of `ACTIVATIONS`."""


def fits(x: Tensor) -> bool:
    """Whether the chain can run on `x` in one go; otherwise its parts must run one after another."""
    if x.device.type == "cpu":
        return x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    kernels = kernels_on(x.device) if x.device.type == "cuda" else None
    if kernels is None:
        return False
    from simam_inject.attention.kernels import chained

    return chained.fits(x)


def forward(x: Tensor, e_lambda: float, chain: Chain) -> Tensor:
    """Run the chain on `x` of shape (N, C, spatial), for which `fits` holds. Records no graph."""
    if x.device.type == "cuda":
        from simam_inject.attention.kernels import chained

        return chained.forward(x, e_lambda, chain)
    y = torch.empty_like(x)
    per_plane = (*x.shape[:2], *(1 for _ in x.shape[2:]))
    wide = statistics_dtype(x.dtype)
    affine = [
        part.to(wide).reshape(1, -1, *per_plane[2:]).expand(per_plane).contiguous()
        for part in (chain.scale, chain.shift)
    ]
    residual = chain.residual
    if residual is not None and residual.stride() != x.stride():
        residual = torch.empty_like(x).copy_(residual)
    tensors = (x, y, *affine) if residual is None else (x, y, *affine, residual)
    for part, out, scale, shift, *rest in pieces(FORWARD_PIECE, *tensors):
        _run(part, out, e_lambda, chain._replace(scale=scale, shift=shift, residual=rest[0] if rest else None))
    return y


def _run(x: Tensor, y: Tensor, e_lambda: float, chain: Chain) -> None:
    dims = spatial(x)
    wide = widen(x)
    buffer = y if wide is x else torch.empty_like(wide)
    torch.ops.aten.mse_loss.out(wide, wide.mean(dims, keepdim=True), NO_REDUCTION, out=buffer)
    energy = buffer.sum(dims, keepdim=True)
    squared = chain.scale * chain.scale if chain.norm_first else None
    if squared is not None:
        energy.mul_(squared)
    slope = energy.mul_(4 / less_one(positions(x, dims))).add_(4 * e_lambda).reciprocal_()
    if squared is not None:
        slope.mul_(squared)
    buffer.mul_(slope).add_(0.5).sigmoid_()
    # Two passes rather than one `addcmul`, which is not vectorised over operands that are broadcast.
    if chain.norm_first:
        buffer.mul_(torch.mul(wide, chain.scale).add_(chain.shift))
    else:
        buffer.mul_(wide).mul_(chain.scale).add_(chain.shift)
    if chain.residual is not None:
        buffer.add_(chain.residual)
    if chain.activation is not None:
        ACTIVATIONS[chain.activation](buffer)
    if buffer is not y:
        y.copy_(buffer)
