"""What the kernels share: addressing a tile, the algebra on a tile, merging moments."""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def own_planes(channels, planes: tl.constexpr):
    """Return sample, channels, index among all planes, and which channels exist, for this program."""
    blocks = tl.cdiv(channels, planes)
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    channel = (program % blocks) * planes + tl.arange(0, planes)
    return sample, channel, sample * channels + channel, channel < channels


@triton.jit
def offsets(sample, channel, position, strides):
    """Return where a tile lies."""
    return sample * strides[0] + channel[:, None] * strides[1] + position[None, :] * strides[2]


@triton.jit
def read(pointer, where, inside):
    """Return a tile in float32, zero outside."""
    return tl.load(pointer + where, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def write(pointer, where, value, inside):
    """Round once and store."""
    tl.store(pointer + where, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def slope(energy, e_lambda, positions):
    """Return a, from sum(d^2)."""
    return 1.0 / (energy * (4.0 / tl.maximum(positions - 1, 1)) + 4.0 * e_lambda)


@triton.jit
def attended(x, mean, a):
    """Return y."""
    deviation = x - mean[:, None]
    return x * tl.sigmoid(deviation * deviation * a[:, None] + 0.5)


@triton.jit
def terms(x, grad, mean, a):
    """Return d, g s and h d; the last two are zero outside, where x and g are."""
    deviation = x - mean[:, None]
    s = tl.sigmoid(deviation * deviation * a[:, None] + 0.5)
    return deviation, grad * s, grad * x * s * (1.0 - s) * deviation


@triton.jit
def gradient(deviation, gated, product, first, second, a, positions):
    """Return dx, from `terms` and from first = sum(h d), second = sum(h d^2)."""
    tilt = second * a * (4.0 / tl.maximum(positions - 1, 1))
    return gated + 2.0 * a[:, None] * (product - (first / positions)[:, None] - tilt[:, None] * deviation)


@triton.jit
def welford(count, mean, energy, x, inside):
    """Take one tile into the (count, mean, sum(d^2)) that every lane keeps for itself."""
    count += inside.to(tl.float32)
    delta = tl.where(inside, x - mean, 0.0)
    mean += delta / tl.maximum(count, 1.0)
    return count, mean, energy + delta * (x - mean)


@triton.jit
def merged(count, mean, energy):
    """Return mean and sum(d^2) of each plane, from those of its lanes or parts."""
    middle = tl.sum(count * mean, 1) / tl.maximum(tl.sum(count, 1), 1.0)
    shift = mean - middle[:, None]
    return middle, tl.sum(energy + count * shift * shift, 1)
