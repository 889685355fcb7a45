"""Planes that fit on chip: one read of each input, one write of the result."""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from simam_inject.attention.kernels.tiles import attended, gradient, offsets, own_planes, read, slope, terms, write


@triton.jit
def forward(
    x_ptr,
    y_ptr,
    mean_ptr,
    a_ptr,
    x_strides,
    y_strides,
    channels,
    positions,
    e_lambda,
    keep: tl.constexpr,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write y and, with `keep`, mu and a."""
    sample, channel, plane, exists = own_planes(channels, planes)
    position = tl.arange(0, span)
    inside = exists[:, None] & (position < positions)[None, :]
    x = read(x_ptr, offsets(sample, channel, position, x_strides), inside)
    mean = tl.sum(x, 1) / positions
    deviation = tl.where(inside, x - mean[:, None], 0.0)
    a = slope(tl.sum(deviation * deviation, 1), e_lambda, positions)
    write(y_ptr, offsets(sample, channel, position, y_strides), attended(x, mean, a), inside)
    if keep:
        tl.store(mean_ptr + plane, mean, mask=exists)
        tl.store(a_ptr + plane, a, mask=exists)


@triton.jit
def backward(
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
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Write dx."""
    sample, channel, plane, exists = own_planes(channels, planes)
    position = tl.arange(0, span)
    inside = exists[:, None] & (position < positions)[None, :]
    x = read(x_ptr, offsets(sample, channel, position, x_strides), inside)
    grad = read(grad_ptr, offsets(sample, channel, position, grad_strides), inside)
    mean = tl.load(mean_ptr + plane, mask=exists, other=0.0)
    a = tl.load(a_ptr + plane, mask=exists, other=0.0)
    deviation, gated, product = terms(x, grad, mean, a)
    first, second = tl.sum(product, 1), tl.sum(product * deviation, 1)
    result = gradient(deviation, gated, product, first, second, a, positions)
    write(result_ptr, offsets(sample, channel, position, result_strides), result, inside)
