"""SimAM in Triton, for eager mode on a GPU. Imported when the first GPU tensor is attended.

Each program computes a tile: some planes of one sample by some of their positions. A tensor is given by its (sample,
channel, position) strides, so the same kernels work in channels-first memory, where the positions of a plane are
adjacent, and in channels-last memory, where the channels are: only the shape of the tile differs. With `is_whole` a
tile contains all positions, stays on chip, and every tensor is read or written once; otherwise a program loops over its
planes twice, first for the sums, and its second read mostly comes from L2.

Sums are float32, and there are no atomics, so results do not depend on the order of the programs. The formulas are in
`composite`, with keep = 1 - strength and scale = strength * gain, so that y = x (keep + scale s).

Tested under Triton's interpreter, and compiled for sm_90 without a device. **Not timed on a GPU yet**: tile sizes, the
number of warps, and from which size on programs loop, are from theory.
"""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import functools
import itertools
from contextlib import nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FORWARD_ROOM, BACKWARD_ROOM = 16384, 8192
"""Most elements of a tile, which is in registers. A backward has two inputs."""
SMALL_TILE = 2048
"""Elements of a tile of several small planes, and of one step of a loop."""
NARROWEST, WIDEST = 16, 64
"""Channels of a channels-last tile. 16 of half precision are 32 bytes, the unit of memory traffic."""
PROGRAMS = 264
"""Two for each of the 132 processors of an H100 or H200. For fewer programs, channels-last tiles become narrower."""
LONGEST = 2**31 - 1
"""Offsets within one sample are 32 bits wide."""
LAYOUTS = 1024
"""Maps that are known. A small map takes a GPU less time than Python takes to look at it."""

Ints = tuple[int, ...]


class Flat(NamedTuple):
    """A map seen as (sample, channel, position)."""

    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]


def fits(x: Tensor) -> bool:
    """Whether the kernels can read `x` without a copy.

    They take no float64, several spatial strides, elements that share memory, or samples with offsets beyond 32 bits.
    """
    return x.dtype in DTYPES and _are_readable(x.shape, x.stride())


@functools.lru_cache(LAYOUTS)
def _are_readable(shape: Ints, strides: Ints) -> bool:
    order = spatial_order(shape, strides)
    for outer, inner in itertools.pairwise(dim for dim in order if shape[dim] > 1):
        if strides[outer] != strides[inner] * shape[inner]:
            return False
    flat, reach = flatten(shape, strides, order), 0
    for stride, size in sorted(zip(flat.strides, flat.sizes, strict=True)):
        if size > 1 and stride <= reach:
            return False
        reach += stride * (size - 1)
    return (flat.sizes[1] - 1) * flat.strides[1] + (flat.sizes[2] - 1) * flat.strides[2] <= LONGEST


def forward(
    x: Tensor, e_lambda: float, strength: float, gain: float, saves: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial), for which `fits` holds; with `saves`, also return mu and a.

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    y, mean, a = torch.empty_like(x), None, None
    if saves:
        mean = x.new_empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=torch.float32)
        a = torch.empty_like(mean)
    _launch(_forward, FORWARD_ROOM, [x, y], mean, a, e_lambda, 1.0 - strength, strength * gain)
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, strength: float, gain: float) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` saved."""
    result = torch.empty_like(x)
    if grad.stride() != result.stride():
        grad = torch.empty_like(x).copy_(grad)
    _launch(_backward, BACKWARD_ROOM, [x, grad, result], mean, a, 1.0 - strength, strength * gain)
    return result


def _launch(kernel: Any, room: int, maps: list[Tensor], *others: Tensor | float | None) -> None:
    """Run a kernel over all planes of some maps of one shape, all but the first of one layout."""
    first, last = maps[0], maps[-1]
    if first.numel() == 0:
        return
    order = spatial_order(first.shape, first.stride())
    read, written = (flatten(one.shape, one.stride(), order) for one in (first, last))
    programs, tile = choose(read, room)
    # A CPU tensor comes with Triton's interpreter.
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[(programs,)](*maps, read.strides, written.strides, *read.sizes[1:], *others, **tile)


@functools.lru_cache(LAYOUTS)
def spatial_order(shape: Ints, strides: Ints) -> Ints:
    """Return the spatial dimensions, outermost in memory first. SimAM does not depend on their order."""
    return tuple(sorted(range(2, len(shape)), key=lambda dim: (shape[dim] > 1, -strides[dim])))


@functools.lru_cache(LAYOUTS)
def flatten(shape: Ints, strides: Ints, order: Ints) -> Flat:
    """Return the map with its spatial dimensions in `order` as one, of the stride of the innermost."""
    steps = [strides[dim] for dim in order if shape[dim] > 1]
    return Flat((shape[0], shape[1], prod(shape[2:])), (strides[0], strides[1], steps[-1] if steps else 1))


@functools.lru_cache(LAYOUTS)
def choose(flat: Flat, room: int) -> tuple[int, dict[str, int]]:
    """Return the number of programs, and their tile of at most `room` elements.

    A tile is `planes` of one sample by a `span` of positions: all of them, or one step of a loop. Both are powers of
    two. A thread computes 16 elements of a tile, 32 of the largest, fewer of the smallest.
    """
    samples, channels, positions = flat.sizes
    span = triton.next_power_of_2(positions)
    if flat.strides[2] <= flat.strides[1]:
        narrowest, planes = 1, max(1, SMALL_TILE // span)
    else:
        narrowest, planes = NARROWEST, WIDEST
        while planes > narrowest and samples * triton.cdiv(channels, planes) < PROGRAMS:
            planes //= 2
    planes = min(planes, triton.next_power_of_2(channels))
    while planes > narrowest and planes * span > room:
        planes //= 2
    is_whole = planes * span <= room
    span = span if is_whole else SMALL_TILE // planes
    warps = min(16, max(4, planes * span // 512))
    tile = {"is_whole": is_whole, "planes": planes, "span": span, "num_warps": warps}
    return samples * triton.cdiv(channels, planes), tile


@triton.jit
def _forward(
    x_ptr,
    y_ptr,
    x_strides,
    y_strides,
    channels,
    positions,
    mean_ptr,
    a_ptr,
    e_lambda,
    keep,
    scale,
    is_whole: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write y and, unless their pointers are None, mu and a."""
    sample, channel, exists = _own_planes(channels, planes)
    x_rows, y_rows = _rows(x_ptr, x_strides, sample, channel), _rows(y_ptr, y_strides, sample, channel)
    lane = tl.arange(0, span)[None, :]
    # Every lane updates its own (count, mean, sum(d^2)) by Welford's method; they are merged at the end.
    energy = tl.zeros((planes, span), tl.float32)
    if is_whole:
        x, inside = _read(x_rows, x_strides, lane, exists, positions)
        count, means = inside.to(tl.float32), x
    else:
        count, means = tl.zeros((planes, span), tl.float32), tl.zeros((planes, span), tl.float32)
        for begin in range(0, positions, span):
            x, inside = _read(x_rows, x_strides, begin + lane, exists, positions)
            count += inside.to(tl.float32)
            delta = tl.where(inside, x - means, 0.0)
            means += delta / tl.maximum(count, 1.0)
            energy += delta * (x - means)
    mean = tl.sum(count * means, 1) / positions
    shift = means - mean[:, None]
    energy += count * shift * shift
    a = 1.0 / (tl.sum(energy, 1) * (4.0 / tl.maximum(positions - 1, 1)) + 4.0 * e_lambda)
    for begin in range(0, span if is_whole else positions, span):
        if not is_whole:
            x, inside = _read(x_rows, x_strides, begin + lane, exists, positions)
        deviation = x - mean[:, None]
        y = x * (keep + scale * tl.sigmoid(deviation * deviation * a[:, None] + 0.5))
        _write(y_rows, y_strides, begin + lane, inside, y)
    if mean_ptr is not None:
        tl.store(mean_ptr + sample * channels + channel, mean, mask=exists)
        tl.store(a_ptr + sample * channels + channel, a, mask=exists)


@triton.jit
def _backward(
    x_ptr,
    grad_ptr,
    result_ptr,
    x_strides,
    result_strides,
    channels,
    positions,
    mean_ptr,
    a_ptr,
    keep,
    scale,
    is_whole: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write dx. The gradient of y has the strides of the result."""
    sample, channel, exists = _own_planes(channels, planes)
    x_rows, grad_rows = _rows(x_ptr, x_strides, sample, channel), _rows(grad_ptr, result_strides, sample, channel)
    mean = tl.load(mean_ptr + sample * channels + channel, mask=exists, other=0.0)[:, None]
    a = tl.load(a_ptr + sample * channels + channel, mask=exists, other=0.0)[:, None]
    lane = tl.arange(0, span)[None, :]
    if is_whole:
        x, inside = _read(x_rows, x_strides, lane, exists, positions)
        grad, _ = _read(grad_rows, result_strides, lane, exists, positions)
        deviation, gated, product = _terms(x, grad, mean, a, keep, scale)
        firsts, seconds = product, product * deviation
    else:
        firsts, seconds = tl.zeros((planes, span), tl.float32), tl.zeros((planes, span), tl.float32)
        for begin in range(0, positions, span):
            x, _ = _read(x_rows, x_strides, begin + lane, exists, positions)
            grad, _ = _read(grad_rows, result_strides, begin + lane, exists, positions)
            deviation, gated, product = _terms(x, grad, mean, a, keep, scale)
            firsts += product
            seconds += product * deviation
    first = tl.sum(firsts, 1)[:, None] / positions
    second = tl.sum(seconds, 1)[:, None] * a * (4.0 / tl.maximum(positions - 1, 1))
    result_rows = _rows(result_ptr, result_strides, sample, channel)
    for begin in range(0, span if is_whole else positions, span):
        if not is_whole:
            x, inside = _read(x_rows, x_strides, begin + lane, exists, positions)
            grad, _ = _read(grad_rows, result_strides, begin + lane, exists, positions)
            deviation, gated, product = _terms(x, grad, mean, a, keep, scale)
        dx = gated + 2.0 * a * (product - first - second * deviation)
        _write(result_rows, result_strides, begin + lane, inside, dx)


@triton.jit
def _own_planes(channels, planes: tl.constexpr):
    """Return the sample of this program, its channels, and which of them exist."""
    blocks = tl.cdiv(channels, planes)
    program = tl.program_id(0)
    channel = (program % blocks) * planes + tl.arange(0, planes)
    return (program // blocks).to(tl.int64), channel, channel < channels


@triton.jit
def _rows(pointer, strides, sample, channel):
    """Return where the planes begin."""
    return pointer + sample * strides[0] + channel[:, None] * strides[1]


@triton.jit
def _read(rows, strides, position, exists, positions):
    """Return a tile in float32, zero outside of the map, and which of its elements are inside."""
    inside = exists[:, None] & (position < positions)
    return tl.load(rows + position * strides[2], mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def _write(rows, strides, position, inside, value):
    """Round once and store."""
    tl.store(rows + position * strides[2], value.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def _terms(x, grad, mean, a, keep, scale):
    """Return d, g (keep + scale s) and scale h d; the last two are zero outside, where x and g are."""
    deviation = x - mean
    s = tl.sigmoid(deviation * deviation * a + 0.5)
    return deviation, grad * (keep + scale * s), scale * grad * x * s * (1.0 - s) * deviation
