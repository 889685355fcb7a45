"""SimAM in Triton, for eager mode on a GPU. Imported when the first GPU tensor is attended.

Each program computes a tile: some planes of one sample by some of their positions. A tensor is given by its (sample,
channel, position) strides, so the same kernels work in channels-first memory, where the positions of a plane are
adjacent, and in channels-last memory, where the channels are: only the shape of the tile differs. A tile that contains
all positions stays on chip, and every tensor is read or written once. Larger planes have parts: one launch computes two
sums of each part, and a second one merges them and applies the result, where its read mostly comes from L2.

Sums are float32, and there are no atomics, so results do not depend on the order of the programs. The formulas are in
`composite`, with keep = 1 - strength and scale = strength * gain, so that y = x (keep + scale s).

On an H200 a map of half precision takes as long to compute as to read (docs/performance.md).
"""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from simam_inject.attention.tiles import Flat, choose, flatten, spatial_order


def forward(
    x: Tensor, e_lambda: float, strength: float, gain: float, saves: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial), for which `tiles.fits` holds; with `saves`, also return mu and a.

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    y, mean, a = torch.empty_like(x), None, None
    if saves:
        mean = x.new_empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=torch.float32)
        a = torch.empty_like(mean)
    if x.numel() == 0:
        return y, mean, a
    read, written = _flattened(x, y)
    programs, tile = choose(read)
    sums = _empty_sums(x, tile)
    with _on_device(x):
        if sums[0] is not None:
            _statistics[programs](x, *sums, read.strides, *read.sizes[1:], **tile)
        numbers = e_lambda, 1.0 - strength, strength * gain
        _forward[programs](x, y, *sums, read.strides, written.strides, *read.sizes[1:], mean, a, *numbers, **tile)
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, strength: float, gain: float) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` saved."""
    result = torch.empty_like(x)
    if x.numel() == 0:
        return result
    if grad.stride() != result.stride() or grad.is_neg():
        grad = torch.empty_like(x).copy_(grad)
    read, written = _flattened(x, result)
    programs, tile = choose(read)
    sums = _empty_sums(x, tile)
    shared = read.strides, written.strides, *read.sizes[1:], mean, a
    with _on_device(x):
        if sums[0] is not None:
            _sums[programs](x, grad, *sums, *shared, **tile)
        _backward[programs](x, grad, result, *sums, *shared, 1.0 - strength, strength * gain, **tile)
    return result


def _flattened(x: Tensor, result: Tensor) -> tuple[Flat, Flat]:
    """Return how both are laid out, for the positions of `x` in the order of its memory."""
    order = spatial_order(x.shape, x.stride())
    return flatten(x.shape, x.stride(), order), flatten(x.shape, result.stride(), order)


def _empty_sums(x: Tensor, tile: dict[str, int]) -> tuple[Tensor | None, ...]:
    """Return memory for two sums of every part of every plane, or twice None if planes have no parts."""
    if tile["parts"] == 0:
        return None, None
    return x.new_empty((2, *x.shape[:2], tile["parts"]), dtype=torch.float32).unbind()


def _on_device(x: Tensor) -> Any:
    """Launch where `x` is. A CPU tensor comes with Triton's interpreter."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def _statistics(
    x_ptr,
    part_means_ptr,
    part_energies_ptr,
    x_strides,
    channels,
    positions,
    parts: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write the mean and sum(d^2) of one part of some planes."""
    sample, channel, exists, part = _own_planes(channels, parts, planes)
    rows = _rows(x_ptr, x_strides, sample, channel)
    begin, end = _own_positions(positions, part, parts, span)
    lane = tl.arange(0, span)[None, :]
    # Every lane updates its own mean and sum(d^2) by Welford's method; they are merged at the end.
    means, energies = tl.zeros((planes, span), tl.float32), tl.zeros((planes, span), tl.float32)
    step = 0.0
    for start in range(begin, end, span):
        x, inside = _read(rows, x_strides, start + lane, exists, end)
        step += 1.0
        delta = tl.where(inside, x - means, 0.0)
        means += delta * (1.0 / step)
        energies += delta * (x - means)
    counts = tl.cdiv(tl.maximum(end - begin - lane, 0), span).to(tl.float32)
    mean, energy = _merged(counts, means, energies, tl.maximum(end - begin, 1))
    place = (sample * channels + channel) * parts + part
    tl.store(part_means_ptr + place, mean, mask=exists)
    tl.store(part_energies_ptr + place, energy, mask=exists)


@triton.jit
def _forward(
    x_ptr,
    y_ptr,
    part_means_ptr,
    part_energies_ptr,
    x_strides,
    y_strides,
    channels,
    positions,
    mean_ptr,
    a_ptr,
    e_lambda,
    keep,
    scale,
    parts: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write y and, unless their pointers are None, mu and a."""
    sample, channel, exists, part = _own_planes(channels, parts, planes)
    x_rows, y_rows = _rows(x_ptr, x_strides, sample, channel), _rows(y_ptr, y_strides, sample, channel)
    begin, end = (0, span) if parts == 0 else _own_positions(positions, part, parts, span)
    lane = tl.arange(0, span)[None, :]
    if parts == 0:
        x, inside = _read(x_rows, x_strides, lane, exists, positions)
        mean = _quotient(tl.sum(x, 1), positions)
        deviation = tl.where(inside, x - mean[:, None], 0.0)
        energy = tl.sum(deviation * deviation, 1)
    else:
        means = _read_parts(part_means_ptr, sample, channels, channel, exists, parts)
        energies = _read_parts(part_energies_ptr, sample, channels, channel, exists, parts)
        first, last = _own_positions(positions, tl.arange(0, parts)[None, :], parts, span)
        mean, energy = _merged(tl.maximum(last - first, 0).to(tl.float32), means, energies, positions)
    a = 1.0 / (energy * (4.0 / tl.maximum(positions - 1, 1)) + 4.0 * e_lambda)
    mean_column, a_column = _column(mean, planes), _column(a, planes)
    for start in range(begin, end, span):
        if parts > 0:
            x, inside = _read(x_rows, x_strides, start + lane, exists, end)
            deviation = x - mean_column
        y = x * (keep + scale * _gate(deviation, a_column))
        _write(y_rows, y_strides, start + lane, inside, y)
    if mean_ptr is not None:
        tl.store(mean_ptr + sample * channels + channel, mean, mask=exists & (part == 0))
        tl.store(a_ptr + sample * channels + channel, a, mask=exists & (part == 0))


@triton.jit
def _sums(
    x_ptr,
    grad_ptr,
    part_firsts_ptr,
    part_seconds_ptr,
    x_strides,
    result_strides,
    channels,
    positions,
    mean_ptr,
    a_ptr,
    parts: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write sum(h d) and sum(h d^2) of one part of some planes."""
    sample, channel, exists, part = _own_planes(channels, parts, planes)
    x_rows, grad_rows = _rows(x_ptr, x_strides, sample, channel), _rows(grad_ptr, result_strides, sample, channel)
    mean, a = _read_saved(mean_ptr, a_ptr, sample, channels, channel, exists)
    begin, end = _own_positions(positions, part, parts, span)
    lane = tl.arange(0, span)[None, :]
    firsts, seconds = tl.zeros((planes, span), tl.float32), tl.zeros((planes, span), tl.float32)
    for start in range(begin, end, span):
        x, _ = _read(x_rows, x_strides, start + lane, exists, end)
        grad, _ = _read(grad_rows, result_strides, start + lane, exists, end)
        deviation, _, product = _terms(x, grad, mean, a)
        firsts += product
        seconds += product * deviation
    place = (sample * channels + channel) * parts + part
    tl.store(part_firsts_ptr + place, tl.sum(firsts, 1), mask=exists)
    tl.store(part_seconds_ptr + place, tl.sum(seconds, 1), mask=exists)


@triton.jit
def _backward(
    x_ptr,
    grad_ptr,
    result_ptr,
    part_firsts_ptr,
    part_seconds_ptr,
    x_strides,
    result_strides,
    channels,
    positions,
    mean_ptr,
    a_ptr,
    keep,
    scale,
    parts: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write dx. The gradient of y has the strides of the result."""
    sample, channel, exists, part = _own_planes(channels, parts, planes)
    x_rows, grad_rows = _rows(x_ptr, x_strides, sample, channel), _rows(grad_ptr, result_strides, sample, channel)
    result_rows = _rows(result_ptr, result_strides, sample, channel)
    mean, a = _read_saved(mean_ptr, a_ptr, sample, channels, channel, exists)
    begin, end = (0, span) if parts == 0 else _own_positions(positions, part, parts, span)
    lane = tl.arange(0, span)[None, :]
    if parts == 0:
        x, inside = _read(x_rows, x_strides, lane, exists, positions)
        grad, _ = _read(grad_rows, result_strides, lane, exists, positions)
        deviation, gate, product = _terms(x, grad, mean, a)
        first, second = tl.sum(product, 1), tl.sum(product * deviation, 1)
    else:
        first = tl.sum(_read_parts(part_firsts_ptr, sample, channels, channel, exists, parts), 1)
        second = tl.sum(_read_parts(part_seconds_ptr, sample, channels, channel, exists, parts), 1)
    slope = 2.0 * scale * a
    constant = slope * _column(first, planes) / positions
    linear = slope * _column(second, planes) * a * (4.0 / tl.maximum(positions - 1, 1))
    for start in range(begin, end, span):
        if parts > 0:
            x, inside = _read(x_rows, x_strides, start + lane, exists, end)
            grad, _ = _read(grad_rows, result_strides, start + lane, exists, end)
            deviation, gate, product = _terms(x, grad, mean, a)
        dx = grad * (keep + scale * gate) + slope * product - (constant + linear * deviation)
        _write(result_rows, result_strides, start + lane, inside, dx)


@triton.jit
def _own_planes(channels, parts: tl.constexpr, planes: tl.constexpr):
    """Return the sample of this program, its channels, which of them exist, and the part of their positions."""
    blocks = tl.cdiv(channels, planes)
    block, part = tl.program_id(0), 0
    if parts > 0:
        block, part = block // parts, block % parts
    channel = (block % blocks) * planes + tl.arange(0, planes)
    return (block // blocks).to(tl.int64), channel, channel < channels, part


@triton.jit
def _own_positions(positions, part, parts: tl.constexpr, span: tl.constexpr):
    """Return the first position of a part, and the one after its last. Later parts may be shorter, or empty."""
    length = tl.cdiv(positions, parts * span) * span
    return part * length, tl.minimum((part + 1) * length, positions)


@triton.jit
def _rows(pointer, strides, sample, channel):
    """Return where the planes begin."""
    return pointer + sample * strides[0] + channel[:, None] * strides[1]


@triton.jit
def _read(rows, strides, position, exists, end):
    """Return a tile in float32, zero outside of the planes, and which of its elements are inside."""
    inside = exists[:, None] & (position < end)
    return tl.load(rows + position * strides[2], mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def _read_parts(pointer, sample, channels, channel, exists, parts: tl.constexpr):
    """Return a number of each part of the planes."""
    place = (sample * channels + channel[:, None]) * parts + tl.arange(0, parts)[None, :]
    return tl.load(pointer + place, mask=exists[:, None], other=0.0)


@triton.jit
def _read_saved(mean_ptr, a_ptr, sample, channels, channel, exists):
    """Return mu and a of the planes, as columns."""
    place = sample * channels + channel
    mean = tl.load(mean_ptr + place, mask=exists, other=0.0)
    return mean[:, None], tl.load(a_ptr + place, mask=exists, other=0.0)[:, None]


@triton.jit
def _column(values, planes: tl.constexpr):
    """Return a number of each plane, to be combined with a tile.

    For a tile of one plane a scalar: Triton would spread a vector of one over the tile through shared memory.
    """
    column = values[:, None]
    if planes == 1:
        column = tl.sum(values, 0)
    return column


@triton.jit
def _merged(counts, means, energies, total):
    """Return the mean and sum(d^2) of each row from those of its groups, of `counts` elements."""
    mean = _quotient(tl.sum(counts * means, 1), total)
    shift = means - mean[:, None]
    return mean, tl.sum(energies + counts * shift * shift, 1)


@triton.jit
def _quotient(total, count):
    """Return total / count with one step of correction: the inverse alone is not exact to the last bit on a GPU."""
    count = count * 1.0
    inverse = 1.0 / count
    estimate = total * inverse
    return tl.fma(tl.fma(-estimate, count, total), inverse, estimate)


@triton.jit
def _write(rows, strides, position, inside, value):
    """Round once and store."""
    tl.store(rows + position * strides[2], value.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def _gate(deviation, a):
    """Return sigmoid(d^2 a + 1/2) to 5e-7: exp2 and rsqrt are one instruction each, exp and a division are 17."""
    power = tl.exp2(deviation * deviation * (a * -1.4426950408889634) - 0.7213475204444817)
    root = tl.rsqrt(1.0 + power)
    return root * root


@triton.jit
def _terms(x, grad, mean, a):
    """Return d, s and h d; the last is zero outside, where x and the gradient are."""
    deviation = x - mean
    gate = _gate(deviation, a)
    return deviation, gate, grad * x * (gate - gate * gate) * deviation
