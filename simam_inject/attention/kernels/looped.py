"""Planes too large to stay on chip, but enough of them to fill the GPU: two reads of each input, the second from L2."""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from simam_inject.attention.kernels.tiles import own_planes, slope
from simam_inject.attention.kernels.walks import apply_backward, apply_forward, moments, products


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
    mean, energy = moments(x_ptr, x_strides, sample, channel, exists, 0, positions, planes, span)
    a = slope(energy, e_lambda, positions)
    apply_forward(x_ptr, y_ptr, x_strides, y_strides, sample, channel, exists, 0, positions, mean, a, span)
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
    mean = tl.load(mean_ptr + plane, mask=exists, other=0.0)
    a = tl.load(a_ptr + plane, mask=exists, other=0.0)
    first, second = products(
        x_ptr, grad_ptr, x_strides, grad_strides, sample, channel, exists, 0, positions, mean, a, planes, span
    )
    apply_backward(
        x_ptr,
        grad_ptr,
        result_ptr,
        x_strides,
        grad_strides,
        result_strides,
        sample,
        channel,
        exists,
        0,
        positions,
        positions,
        mean,
        a,
        first,
        second,
        span,
    )
