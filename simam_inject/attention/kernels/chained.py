"""A chain (norm, SimAM, residual, activation) on planes that fit on chip: one read of each input, one write.

Tested under Triton's interpreter. **Not timed on a GPU yet.**
"""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from simam_inject.attention.kernels import launch
from simam_inject.attention.kernels.tiles import offsets, own_planes, read, write
from simam_inject.attention.kernels.tiling import FORWARD_ROOM, choose, collapse, spatial_order

if TYPE_CHECKING:
    from torch import Tensor

    from simam_inject.attention.chained import Chain


def fits(x: Tensor) -> bool:
    """Whether each plane of `x` stays on chip."""
    if not launch.fits(x) or x.numel() == 0:
        return False
    tiling = _tiling(x)
    return bool(tiling.parts == 1 and tiling.is_whole)


def forward(x: Tensor, e_lambda: float, chain: Chain) -> Tensor:
    """Run the chain on `x` of shape (N, C, spatial), for which `fits` holds."""
    y = torch.empty_like(x)
    order = spatial_order(x)
    residual = x if chain.residual is None else chain.residual
    if collapse(residual, order) is None:
        residual = torch.empty_like(x).copy_(residual)
    strides = (collapse(x, order), collapse(residual, order), collapse(y, order))
    tiling = _tiling(x)
    with launch.current_device(x):
        _run[(tiling.programs,)](
            x,
            residual,
            y,
            chain.scale.float().contiguous(),
            chain.shift.float().contiguous(),
            *strides,
            *launch.sizes_of(x)[1:],
            e_lambda,
            norm_first=chain.norm_first,
            has_residual=chain.residual is not None,
            activation=chain.activation or "",
            planes=tiling.planes,
            span=tiling.span,
            num_warps=tiling.warps,
        )
    return y


def _tiling(x: Tensor):
    strides = collapse(x, spatial_order(x))
    assert strides is not None, "asked for a tensor that does not fit"
    return choose(strides, *launch.sizes_of(x), FORWARD_ROOM)


@triton.jit
def _run(
    x_ptr,
    residual_ptr,
    y_ptr,
    scale_ptr,
    shift_ptr,
    x_strides,
    residual_strides,
    y_strides,
    channels,
    positions,
    e_lambda,
    norm_first: tl.constexpr,
    has_residual: tl.constexpr,
    activation: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write y."""
    sample, channel, _plane, exists = own_planes(channels, planes)
    position = tl.arange(0, span)
    inside = exists[:, None] & (position < positions)[None, :]
    x = read(x_ptr, offsets(sample, channel, position, x_strides), inside)
    scale = tl.load(scale_ptr + channel, mask=exists, other=0.0)[:, None]
    shift = tl.load(shift_ptr + channel, mask=exists, other=0.0)[:, None]
    if norm_first:
        x = tl.where(inside, x * scale + shift, 0.0)
    mean = tl.sum(x, 1) / positions
    deviation = tl.where(inside, x - mean[:, None], 0.0)
    energy = tl.sum(deviation * deviation, 1)
    a = 1.0 / (energy * (4.0 / tl.maximum(positions - 1, 1)) + 4.0 * e_lambda)
    y = x * tl.sigmoid(deviation * deviation * a[:, None] + 0.5)
    if not norm_first:
        y = y * scale + shift
    if has_residual:
        y += read(residual_ptr, offsets(sample, channel, position, residual_strides), inside)
    if activation == "relu":
        y = tl.maximum(y, 0.0)
    elif activation == "relu6":
        y = tl.minimum(tl.maximum(y, 0.0), 6.0)
    elif activation == "silu":
        y = y * tl.sigmoid(y)
    elif activation == "hardswish":
        y = y * tl.minimum(tl.maximum(y + 3.0, 0.0), 6.0) / 6.0
    write(y_ptr, offsets(sample, channel, position, y_strides), y, inside)
