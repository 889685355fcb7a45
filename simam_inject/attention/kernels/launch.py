"""The launches: which kernel, on which tiles, with which scratch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor

from simam_inject.attention.kernels import looped, split, whole
from simam_inject.attention.kernels.tiling import (
    BACKWARD_ROOM,
    FORWARD_ROOM,
    Strides,
    Tiling,
    choose,
    collapse,
    is_plain,
    power_of_two,
    spatial_order,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def fits(x: Tensor) -> bool:
    """Whether the kernels can attend `x` where it lies: not float64, not overlapping itself, of one spatial stride."""
    if x.dtype not in DTYPES:
        return False
    strides = collapse(x, spatial_order(x))
    return strides is not None and is_plain(strides, *sizes_of(x))


def forward(x: Tensor, e_lambda: float, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial), for which `fits` holds; with `keep`, also return mu and a.

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    y, mean, a = torch.empty_like(x), None, None
    if keep:
        mean = torch.empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=torch.float32, device=x.device)
        a = torch.empty_like(mean)
    if x.numel() == 0:
        return y, mean, a
    order = spatial_order(x)
    strides = (_strides(x, order), _strides(y, order))
    tiling = choose(strides[0], *sizes_of(x), FORWARD_ROOM)
    sizes, tile = sizes_of(x)[1:], _tile(tiling)
    tensors = (x, y, y if mean is None else mean, y if a is None else a)
    with current_device(x):
        if tiling.parts == 1:
            kernel = whole.forward if tiling.is_whole else looped.forward
            kernel[(tiling.programs,)](*tensors, *strides, *sizes, e_lambda, keep=keep, **tile)
        else:
            parts, cut = _parts(x, tiling), (*sizes, tiling.segment, tiling.parts)
            grid = (tiling.programs, tiling.parts)
            split.sum_forward[grid](x, *parts, strides[0], *cut, **tile)
            part_span = power_of_two(tiling.parts)
            split.apply_forward[grid](
                *tensors, *parts, *strides, *cut, e_lambda, keep=keep, part_span=part_span, **tile
            )
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` kept."""
    result = torch.empty_like(x)
    if x.numel() == 0:
        return result
    order = spatial_order(x)
    if collapse(grad, order) is None:
        grad = torch.empty_like(x).copy_(grad)
    strides = (_strides(x, order), _strides(grad, order), _strides(result, order))
    tiling = choose(strides[0], *sizes_of(x), BACKWARD_ROOM)
    sizes, tile = sizes_of(x)[1:], _tile(tiling)
    with current_device(x):
        if tiling.parts == 1:
            kernel = whole.backward if tiling.is_whole else looped.backward
            kernel[(tiling.programs,)](x, grad, result, mean, a, *strides, *sizes, **tile)
        else:
            parts, cut = _parts(x, tiling), (*sizes, tiling.segment, tiling.parts)
            grid = (tiling.programs, tiling.parts)
            split.sum_backward[grid](x, grad, mean, a, *parts, *strides[:2], *cut, **tile)
            part_span = power_of_two(tiling.parts)
            split.apply_backward[grid](x, grad, result, mean, a, *parts, *strides, *cut, part_span=part_span, **tile)
    return result


def sizes_of(x: Tensor) -> tuple[int, int, int]:
    """Return samples, channels, positions."""
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def _strides(x: Tensor, order: tuple[int, ...]) -> Strides:
    """Return the collapsed strides. New tensors like an `x` that `fits` keep its order of dimensions, so have some."""
    strides = collapse(x, order)
    assert strides is not None, f"spatial dimensions {order} of {tuple(x.shape)}, strides {x.stride()}, are not one"
    return strides


def _tile(tiling: Tiling) -> dict[str, Any]:
    return {"planes": tiling.planes, "span": tiling.span, "num_warps": tiling.warps}


def _parts(x: Tensor, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Return room for two partial sums of every plane and part."""
    both = torch.empty((2, x.shape[0] * x.shape[1], tiling.parts), dtype=torch.float32, device=x.device)
    return both[0], both[1]


def current_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of `x` the one that Triton launches on. A CPU tensor comes with Triton's interpreter."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
