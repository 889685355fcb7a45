"""How the Triton kernels see a map in memory, and which tile of it each program computes.

The tiles were chosen by `python -m benchmarks tiles` on an H200.
"""

from __future__ import annotations

import functools
import itertools
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROOM, CHANNELS_LAST_ROOM = 32768, 8192
"""Most elements of a tile that contains whole planes. It is in registers."""
WARP = 1024
"""Elements of a tile for each warp, up to 16 warps. Small planes share one."""
STEP = 2048
"""Elements of one step of a loop over a part; twice that, by four times the warps, if programs are few."""
NARROWEST, WIDEST = 16, 64
"""Channels of a channels-last tile. 16 of half precision are 32 bytes, the unit of memory traffic."""
PROGRAMS, FEW = 2048, 512
"""With fewer of them, planes have more parts, and channels-last tiles are narrower. An H200 has 132 processors."""
MOST_SUMS, MOST_PARTS = 1024, 64
"""Each program merges the sums of all parts of its planes."""
LONGEST = 2**31 - 2**20
"""Offsets within one sample are 32 bits wide, also those of a tile that extends beyond the end."""
MOST_PLANES = 2**31
"""A grid has fewer programs."""
LAYOUTS = 1024
"""Maps that are known. A small map takes a GPU less time than Python takes to look at it."""

Ints = tuple[int, ...]


class Flat(NamedTuple):
    """A map seen as (sample, channel, position)."""

    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]


def fits(x: Tensor) -> bool:
    """Whether the kernels can read `x` without a copy.

    They take no float64, several spatial strides, elements that share memory, or samples with offsets beyond 32 bits,
    nor more planes than a grid has programs, nor `z.conj().imag`, whose sign is not in memory.
    """
    return x.dtype in DTYPES and not x.is_neg() and _are_readable(x.shape, x.stride())


@functools.lru_cache(LAYOUTS)
def _are_readable(shape: Ints, strides: Ints) -> bool:
    if shape[0] * shape[1] >= MOST_PLANES:
        return False
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
def choose(flat: Flat) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid of programs, and their tile.

    A tile is `planes` of one sample by a `span` of positions: all of them if `parts` is 0, else one step of a loop over
    one of so many parts of the planes. All are powers of two.
    """
    samples, channels, positions = flat.sizes
    span, parts = _power_of_2(positions), 0
    is_channels_last = flat.strides[2] > flat.strides[1]
    if is_channels_last:
        planes = max(NARROWEST, min(WARP // span, WIDEST))
    else:  # the 32 threads of a warp sum up a plane together, one plane after the other, and more than 8 take too long
        planes = max(1, min(WARP // span, 8 * max(1, 32 // span)))
    planes = min(planes, _power_of_2(channels))
    elements_of_warp = WARP
    if planes * span > (CHANNELS_LAST_ROOM if is_channels_last else ROOM):
        planes, parts = _divide(flat, planes, is_channels_last)
        span = STEP // planes
    programs = samples * -(-channels // planes) * max(1, parts)
    if parts and programs < FEW:
        span, elements_of_warp = 2 * span, WARP // 2
    warps = max(1, min(planes * span // elements_of_warp, 16))
    return (programs,), {"parts": parts, "planes": planes, "span": span, "num_warps": warps}


def _divide(flat: Flat, planes: int, is_channels_last: bool) -> tuple[int, int]:
    """Return how many planes a program has, of at least `planes`, and into how many parts they are divided."""
    samples, channels, positions = flat.sizes
    narrowest, parts = planes, 1
    if is_channels_last:
        planes = min(WIDEST, _power_of_2(channels))
    while planes > narrowest and samples * -(-channels // planes) * (MOST_SUMS // planes) < PROGRAMS:
        planes //= 2
    programs, most = samples * -(-channels // planes), min(MOST_SUMS // planes, MOST_PARTS)
    while parts < most and programs * parts < PROGRAMS and parts * (STEP // planes) < positions:
        parts *= 2
    return planes, parts


def _power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below `number`, of at least 1."""
    return 1 << (number - 1).bit_length()
