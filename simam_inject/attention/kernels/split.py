"""Few large planes: `parts` programs share a plane. `sum_*` write partial sums, `apply_*` merge them and apply.

Program (i, j) takes tile i of the planes and the j-th segment of their positions. Partial sums lie as (plane, part).
"""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from simam_inject.attention.kernels import walks
from simam_inject.attention.kernels.tiles import merged, own_planes, slope


@triton.jit
def own_segment(positions, segment):
    """Return where this program starts and stops."""
    start = tl.program_id(1) * segment
    return start, tl.minimum(start + segment, positions)


@triton.jit
def sum_forward(
    x_ptr,
    mean_ptr,
    energy_ptr,
    x_strides,
    channels,
    positions,
    segment,
    parts,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write mean and sum(d^2) of every segment."""
    sample, channel, plane, exists = own_planes(channels, planes)
    start, stop = own_segment(positions, segment)
    mean, energy = walks.moments(x_ptr, x_strides, sample, channel, exists, start, stop, planes, span)
    tl.store(mean_ptr + plane * parts + tl.program_id(1), mean, mask=exists)
    tl.store(energy_ptr + plane * parts + tl.program_id(1), energy, mask=exists)


@triton.jit
def apply_forward(
    x_ptr,
    y_ptr,
    mean_ptr,
    a_ptr,
    part_mean_ptr,
    part_energy_ptr,
    x_strides,
    y_strides,
    channels,
    positions,
    segment,
    parts,
    e_lambda,
    keep: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
    part_span: tl.constexpr,
):
    """Write y of every segment and, with `keep`, mu and a."""
    sample, channel, plane, exists = own_planes(channels, planes)
    part = tl.arange(0, part_span)
    where = plane[:, None] * parts + part[None, :]
    inside = exists[:, None] & (part < parts)[None, :]
    count = tl.minimum(tl.maximum(positions - part * segment, 0), segment).to(tl.float32)
    mean, energy = merged(
        tl.where(inside, count[None, :], 0.0),
        tl.load(part_mean_ptr + where, mask=inside, other=0.0),
        tl.load(part_energy_ptr + where, mask=inside, other=0.0),
    )
    a = slope(energy, e_lambda, positions)
    start, stop = own_segment(positions, segment)
    walks.apply_forward(x_ptr, y_ptr, x_strides, y_strides, sample, channel, exists, start, stop, mean, a, span)
    if keep:
        tl.store(mean_ptr + plane, mean, mask=exists & (tl.program_id(1) == 0))
        tl.store(a_ptr + plane, a, mask=exists & (tl.program_id(1) == 0))


@triton.jit
def sum_backward(
    x_ptr,
    grad_ptr,
    mean_ptr,
    a_ptr,
    first_ptr,
    second_ptr,
    x_strides,
    grad_strides,
    channels,
    positions,
    segment,
    parts,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write sum(h d) and sum(h d^2) of every segment."""
    sample, channel, plane, exists = own_planes(channels, planes)
    start, stop = own_segment(positions, segment)
    mean = tl.load(mean_ptr + plane, mask=exists, other=0.0)
    a = tl.load(a_ptr + plane, mask=exists, other=0.0)
    first, second = walks.products(
        x_ptr, grad_ptr, x_strides, grad_strides, sample, channel, exists, start, stop, mean, a, planes, span
    )
    tl.store(first_ptr + plane * parts + tl.program_id(1), first, mask=exists)
    tl.store(second_ptr + plane * parts + tl.program_id(1), second, mask=exists)


@triton.jit
def apply_backward(
    x_ptr,
    grad_ptr,
    result_ptr,
    mean_ptr,
    a_ptr,
    first_ptr,
    second_ptr,
    x_strides,
    grad_strides,
    result_strides,
    channels,
    positions,
    segment,
    parts,
    planes: tl.constexpr,
    span: tl.constexpr,
    part_span: tl.constexpr,
):
    """Write dx of every segment."""
    sample, channel, plane, exists = own_planes(channels, planes)
    part = tl.arange(0, part_span)
    where = plane[:, None] * parts + part[None, :]
    inside = exists[:, None] & (part < parts)[None, :]
    first = tl.sum(tl.load(first_ptr + where, mask=inside, other=0.0), 1)
    second = tl.sum(tl.load(second_ptr + where, mask=inside, other=0.0), 1)
    mean = tl.load(mean_ptr + plane, mask=exists, other=0.0)
    a = tl.load(a_ptr + plane, mask=exists, other=0.0)
    start, stop = own_segment(positions, segment)
    walks.apply_backward(
        x_ptr,
        grad_ptr,
        result_ptr,
        x_strides,
        grad_strides,
        result_strides,
        sample,
        channel,
        exists,
        start,
        stop,
        positions,
        mean,
        a,
        first,
        second,
        span,
    )
