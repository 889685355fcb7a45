"""SimAM in Triton, for eager mode on a GPU. Not imported before a GPU tensor is attended.

A tile is some planes of one sample by some of their positions. A tensor comes as its (sample, channel, position)
strides, so the same kernels serve channels-first memory, where positions lie together, and channels-last, where
channels do: only the shape of the tile differs, and the compiler orders the threads along the stride that is one. With
`is_whole` the planes of a tile stay on chip and every tensor is read or written once; otherwise a program walks along
its planes twice, for the sums and to apply, and the second read mostly comes from L2.

Sums are float32, and there are no atomics: results do not depend on the order in which programs run. The formulas are
those of `composite`; here keep = 1 - strength and scale = strength * gain, so that y = x (keep + scale s).

Tested under Triton's interpreter, and compiled for sm_90 without a device. **Not timed on a GPU yet**: tile sizes, the
number of warps and the limits between the two kinds are from theory.
"""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from simam_inject.attention.tiling import (
    BACKWARD_ROOM,
    FORWARD_ROOM,
    Strides,
    choose,
    collapse,
    is_plain,
    spatial_order,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def fits(x: Tensor) -> bool:
    """Whether the kernels can attend `x` where it lies: not float64, not overlapping itself, of one spatial stride."""
    if x.dtype not in DTYPES:
        return False
    strides = collapse(x, spatial_order(x))
    return strides is not None and is_plain(strides, *_sizes(x))


def forward(
    x: Tensor, e_lambda: float, strength: float, gain: float, saves: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial), for which `fits` holds; with `saves`, also return mu and a.

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    y, mean, a = torch.empty_like(x), None, None
    numbers = e_lambda, 1.0 - strength, strength * gain
    if saves:
        mean = x.new_empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=torch.float32)
        a = torch.empty_like(mean)
    if x.numel() > 0:
        tensors = (x, y, y if mean is None else mean, y if a is None else a)
        strides, grid, tile = _launch(FORWARD_ROOM, x, y)
        with _current_device(x):
            _forward[grid](*tensors, *strides, *_sizes(x)[1:], *numbers, saves=saves, **tile)
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, strength: float, gain: float) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` saved."""
    result = torch.empty_like(x)
    if x.numel() > 0:
        if collapse(grad, spatial_order(x)) is None:
            grad = torch.empty_like(x).copy_(grad)
        numbers = 1.0 - strength, strength * gain
        strides, grid, tile = _launch(BACKWARD_ROOM, x, grad, result)
        with _current_device(x):
            _backward[grid](x, grad, result, mean, a, *strides, *_sizes(x)[1:], *numbers, **tile)
    return result


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return samples, channels, positions."""
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def _launch(room: int, x: Tensor, *more: Tensor) -> tuple[list[Strides], tuple[int], dict[str, Any]]:
    """Return the strides of all tensors, the grid, and what is constant while a kernel is compiled."""
    order = spatial_order(x)
    strides = [collapse(tensor, order) for tensor in (x, *more)]
    found = [one for one in strides if one is not None]
    assert len(found) == len(strides), f"{tuple(x.shape)}, strides {x.stride()}: spatial dimensions {order} are not one"
    tiling = choose(found[0], *_sizes(x), room)
    tile = {"planes": tiling.planes, "span": tiling.span, "is_whole": tiling.is_whole, "num_warps": tiling.warps}
    return found, (tiling.programs,), tile


def _current_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of `x` the one that Triton launches on. A CPU tensor comes with Triton's interpreter."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def _forward(
    x_ptr,
    y_ptr,
    mean_ptr,
    a_ptr,
    x_strides,
    y_strides,
    channels,
    positions,
    e_lambda,
    keep,
    scale,
    saves: tl.constexpr,
    is_whole: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write y and, with `saves`, mu and a."""
    sample, channel, plane, exists = _own_planes(channels, planes)
    position = tl.arange(0, span)
    if is_whole:
        inside = exists[:, None] & (position < positions)[None, :]
        x = _read(x_ptr, _offsets(sample, channel, position, x_strides), inside)
        mean = tl.sum(x, 1) / positions
        deviation = tl.where(inside, x - mean[:, None], 0.0)
        a = _slope(tl.sum(deviation * deviation, 1), e_lambda, positions)
        _write(y_ptr, _offsets(sample, channel, position, y_strides), _attended(x, mean, a, keep, scale), inside)
    else:
        # Every lane keeps (count, mean, sum(d^2)) of what it has seen, by Welford's update; they are merged at the end.
        count = tl.zeros((planes, span), tl.float32)
        means = tl.zeros((planes, span), tl.float32)
        energy = tl.zeros((planes, span), tl.float32)
        for begin in range(0, positions, span):
            inside = exists[:, None] & (begin + position < positions)[None, :]
            x = _read(x_ptr, _offsets(sample, channel, begin + position, x_strides), inside)
            count += inside.to(tl.float32)
            delta = tl.where(inside, x - means, 0.0)
            means += delta / tl.maximum(count, 1.0)
            energy += delta * (x - means)
        mean = tl.sum(count * means, 1) / positions
        shift = means - mean[:, None]
        a = _slope(tl.sum(energy + count * shift * shift, 1), e_lambda, positions)
        for begin in range(0, positions, span):
            inside = exists[:, None] & (begin + position < positions)[None, :]
            x = _read(x_ptr, _offsets(sample, channel, begin + position, x_strides), inside)
            y = _attended(x, mean, a, keep, scale)
            _write(y_ptr, _offsets(sample, channel, begin + position, y_strides), y, inside)
    if saves:
        tl.store(mean_ptr + plane, mean, mask=exists)
        tl.store(a_ptr + plane, a, mask=exists)


@triton.jit
def _backward(
    x_ptr,
    grad_ptr,
    result_ptr,
    mean_ptr,
    a_ptr,
    x_strides,
    grad_strides,
    result_strides,
    channels,
    positions,
    keep,
    scale,
    is_whole: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write dx."""
    sample, channel, plane, exists = _own_planes(channels, planes)
    position = tl.arange(0, span)
    mean = tl.load(mean_ptr + plane, mask=exists, other=0.0)
    a = tl.load(a_ptr + plane, mask=exists, other=0.0)
    if is_whole:
        inside = exists[:, None] & (position < positions)[None, :]
        x = _read(x_ptr, _offsets(sample, channel, position, x_strides), inside)
        grad = _read(grad_ptr, _offsets(sample, channel, position, grad_strides), inside)
        deviation, gated, product = _terms(x, grad, mean, a, keep, scale)
        first, second = tl.sum(product, 1), tl.sum(product * deviation, 1)
        result = _gradient(deviation, gated, product, first, second, a, positions)
        _write(result_ptr, _offsets(sample, channel, position, result_strides), result, inside)
    else:
        firsts = tl.zeros((planes, span), tl.float32)
        seconds = tl.zeros((planes, span), tl.float32)
        for begin in range(0, positions, span):
            inside = exists[:, None] & (begin + position < positions)[None, :]
            x = _read(x_ptr, _offsets(sample, channel, begin + position, x_strides), inside)
            grad = _read(grad_ptr, _offsets(sample, channel, begin + position, grad_strides), inside)
            deviation, gated, product = _terms(x, grad, mean, a, keep, scale)
            firsts += product
            seconds += product * deviation
        first, second = tl.sum(firsts, 1), tl.sum(seconds, 1)
        for begin in range(0, positions, span):
            inside = exists[:, None] & (begin + position < positions)[None, :]
            x = _read(x_ptr, _offsets(sample, channel, begin + position, x_strides), inside)
            grad = _read(grad_ptr, _offsets(sample, channel, begin + position, grad_strides), inside)
            deviation, gated, product = _terms(x, grad, mean, a, keep, scale)
            result = _gradient(deviation, gated, product, first, second, a, positions)
            _write(result_ptr, _offsets(sample, channel, begin + position, result_strides), result, inside)


@triton.jit
def _own_planes(channels, planes: tl.constexpr):
    """Return sample, channels, index among all planes, and which channels exist, for this program."""
    blocks = tl.cdiv(channels, planes)
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    channel = (program % blocks) * planes + tl.arange(0, planes)
    return sample, channel, sample * channels + channel, channel < channels


@triton.jit
def _offsets(sample, channel, position, strides):
    """Return where a tile lies."""
    return sample * strides[0] + channel[:, None] * strides[1] + position[None, :] * strides[2]


@triton.jit
def _read(pointer, where, inside):
    """Return a tile in float32, zero outside."""
    return tl.load(pointer + where, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _write(pointer, where, value, inside):
    """Round once and store."""
    tl.store(pointer + where, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _slope(energy, e_lambda, positions):
    """Return a, from sum(d^2)."""
    return 1.0 / (energy * (4.0 / tl.maximum(positions - 1, 1)) + 4.0 * e_lambda)


@triton.jit
def _attended(x, mean, a, keep, scale):
    """Return y."""
    deviation = x - mean[:, None]
    return x * (keep + scale * tl.sigmoid(deviation * deviation * a[:, None] + 0.5))


@triton.jit
def _terms(x, grad, mean, a, keep, scale):
    """Return d, g (keep + scale s) and scale h d; the last two are zero outside, where x and g are."""
    deviation = x - mean[:, None]
    s = tl.sigmoid(deviation * deviation * a[:, None] + 0.5)
    return deviation, grad * (keep + scale * s), scale * grad * x * s * (1.0 - s) * deviation


@triton.jit
def _gradient(deviation, gated, product, first, second, a, positions):
    """Return dx, from `_terms` and from first and second, the sums of the last term and of it times d."""
    tilt = second * a * (4.0 / tl.maximum(positions - 1, 1))
    return gated + 2.0 * a[:, None] * (product - (first / positions)[:, None] - tilt[:, None] * deviation)
