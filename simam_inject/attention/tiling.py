"""How a tensor is cut into tiles for the Triton kernels: arithmetic on shapes and strides, tested without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

Strides = tuple[int, int, int]
"""Of sample, channel and position, in elements."""

FORWARD_ROOM, BACKWARD_ROOM = 16384, 8192
"""Elements of a tile that stay in registers. A backward holds two inputs."""
SMALL_TILE = 2048
"""Elements of a tile where nothing asks for more."""
NARROWEST, WIDEST = 16, 64
"""Channels of a channels-last tile. 16 of half precision are 32 bytes, the unit of memory traffic."""
PROGRAMS = 264
"""Wanted: two for each of the 132 processors of an H100 or H200. With fewer, channels-last tiles become narrower."""
LONGEST = 2**31 - 1
"""Offsets within one sample are 32 bits wide."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the planes of a tensor are cut."""

    planes: int
    """Planes of a tile, all of one sample."""
    span: int
    """Positions of a tile: all of them, or one step of a walk. Both are powers of two."""
    is_whole: bool
    """Whether a tile holds its planes whole, so that they are read once."""
    programs: int

    @property
    def warps(self) -> int:
        """16 elements a thread, 32 in the largest tile, fewer in the smallest."""
        return min(16, max(4, self.planes * self.span // 512))


def choose(strides: Strides, samples: int, channels: int, positions: int, room: int) -> Tiling:
    """Return the tiling for a tensor of these strides and sizes, whose tiles may keep `room` elements on chip."""
    span = power_of_two(positions)
    if strides[2] <= strides[1]:
        narrowest, planes = 1, max(1, SMALL_TILE // span)
    else:
        narrowest, planes = NARROWEST, WIDEST
        while planes > narrowest and samples * -(-channels // planes) < PROGRAMS:
            planes //= 2
    planes = min(planes, power_of_two(channels))
    while planes > narrowest and planes * span > room:
        planes //= 2
    is_whole = planes * span <= room
    return Tiling(planes, span if is_whole else SMALL_TILE // planes, is_whole, samples * -(-channels // planes))


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()


def spatial_order(x: Tensor) -> tuple[int, ...]:
    """Return the spatial dimensions longer than one, outermost in memory first. SimAM does not care for their order."""
    return tuple(sorted((d for d in range(2, x.dim()) if x.shape[d] != 1), key=x.stride, reverse=True))


def collapse(x: Tensor, order: tuple[int, ...]) -> Strides | None:
    """Return the strides of `x` with its spatial dimensions, in this order, taken as one; None if they are not one."""
    for outer, inner in pairwise(order):
        if x.stride(outer) != x.stride(inner) * x.shape[inner]:
            return None
    return x.stride(0), x.stride(1), x.stride(order[-1]) if order else 1


def is_plain(strides: Strides, samples: int, channels: int, positions: int) -> bool:
    """Whether no two elements share memory, and offsets within a sample fit 32 bits."""
    reach = 0
    for stride, size in sorted(zip(strides, (samples, channels, positions), strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
    return (channels - 1) * strides[1] + (positions - 1) * strides[2] <= LONGEST
