"""Walks along some positions of a tile's planes, to sum and to apply: bodies of the looped and the split kernels."""

# Triton reads annotations as types of its own, and ships none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped"
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from simam_inject.attention.kernels.tiles import attended, gradient, merged, offsets, read, terms, welford, write


@triton.jit
def moments(
    x_ptr,
    x_strides,
    sample,
    channel,
    exists,
    start,
    stop,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Return mean and sum(d^2) over the positions from `start` to `stop`."""
    count = tl.zeros((planes, span), tl.float32)
    mean = tl.zeros((planes, span), tl.float32)
    energy = tl.zeros((planes, span), tl.float32)
    for begin in range(start, stop, span):
        position = begin + tl.arange(0, span)
        inside = exists[:, None] & (position < stop)[None, :]
        x = read(x_ptr, offsets(sample, channel, position, x_strides), inside)
        count, mean, energy = welford(count, mean, energy, x, inside)
    return merged(count, mean, energy)


@triton.jit
def apply_forward(
    x_ptr,
    y_ptr,
    x_strides,
    y_strides,
    sample,
    channel,
    exists,
    start,
    stop,
    mean,
    a,
    span: tl.constexpr,
):
    """Write y at the positions from `start` to `stop`."""
    for begin in range(start, stop, span):
        position = begin + tl.arange(0, span)
        inside = exists[:, None] & (position < stop)[None, :]
        x = read(x_ptr, offsets(sample, channel, position, x_strides), inside)
        write(y_ptr, offsets(sample, channel, position, y_strides), attended(x, mean, a), inside)


@triton.jit
def products(
    x_ptr,
    grad_ptr,
    x_strides,
    grad_strides,
    sample,
    channel,
    exists,
    start,
    stop,
    mean,
    a,
    planes: tl.constexpr,
    span: tl.constexpr,
):
    """Return sum(h d) and sum(h d^2) over the positions from `start` to `stop`."""
    first = tl.zeros((planes, span), tl.float32)
    second = tl.zeros((planes, span), tl.float32)
    for begin in range(start, stop, span):
        position = begin + tl.arange(0, span)
        inside = exists[:, None] & (position < stop)[None, :]
        x = read(x_ptr, offsets(sample, channel, position, x_strides), inside)
        grad = read(grad_ptr, offsets(sample, channel, position, grad_strides), inside)
        deviation, _, product = terms(x, grad, mean, a)
        first += product
        second += product * deviation
    return tl.sum(first, 1), tl.sum(second, 1)


@triton.jit
def apply_backward(
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
    span: tl.constexpr,
):
    """Write dx at the positions from `start` to `stop`."""
    for begin in range(start, stop, span):
        position = begin + tl.arange(0, span)
        inside = exists[:, None] & (position < stop)[None, :]
        x = read(x_ptr, offsets(sample, channel, position, x_strides), inside)
        grad = read(grad_ptr, offsets(sample, channel, position, grad_strides), inside)
        deviation, gated, product = terms(x, grad, mean, a)
        result = gradient(deviation, gated, product, first, second, a, positions)
        write(result_ptr, offsets(sample, channel, position, result_strides), result, inside)
