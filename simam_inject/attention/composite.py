"""SimAM's algebra in plain, out-of-place tensor operations: what compilers, exporters and transforms get to see.

Per sample and channel, over the n positions of a map x:

    mu = mean(x)    d = x - mu    v = sum(d^2) / (n - 1)
    a  = 1 / (4 (v + lambda))     s = sigmoid(a d^2 + 1/2)     y = x (keep + scale s)

and, for the gradient g of y and with h = g x s (1 - s):

    dx = g (keep + scale s) + 2 a scale [ h d - sum(h d) / n - (4 a / (n - 1)) sum(h d^2) d ]

keep = 1 - strength and scale = strength * gain, which are 0 and 1 for the plain operator. n - 1 reads max(n - 1, 1)
throughout, so a 1x1 map has the gate sigmoid(1/2) and not NaN. Everything is computed in float32 (float64 for float64)
and rounded once, to the dtype of x: autocast finds nothing to change.

Source: Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
ICML 2021, PMLR 139:11863-11874; written from the formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Dims = tuple[int, ...]

EXPORT_SCALE = 1 / 16
"""Deviations are shrunk by this before they are squared, for runtimes that run an exported float32 graph in float16:
the squares then stay finite up to |d| = 4096, where plain ones overflow at 256."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of means and variances for a map of `dtype`: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """`x` in the dtype of its statistics. A cast to the dtype at hand would leave a node in an exported graph."""
    dtype = statistics_dtype(x.dtype)
    return x if x.dtype == dtype else x.to(dtype)


def narrow(y: Tensor, dtype: torch.dtype) -> Tensor:
    """`y` in `dtype`, likewise."""
    return y if y.dtype == dtype else y.to(dtype)


def spatial_dims(rank: int, channel_dim: int) -> Dims:
    """The dimensions of a map that SimAM averages over."""
    return tuple(range(2, rank)) if channel_dim == 1 else tuple(range(1, rank - 1))


def positions(x: Tensor, dims: Dims) -> Any:
    """How many positions a plane has: an int, a SymInt, or a 0-dim tensor while `torch.jit.trace` records."""
    n: Any = 1
    for dim in dims:  # math.prod cannot be traced over sizes
        n = n * x.shape[dim]
    return n


def less_one(n: Any) -> Any:
    """max(n - 1, 1), for whatever `positions` returned."""
    return (n - 1).clamp(min=1) if isinstance(n, Tensor) else max(n - 1, 1)


def two_pass(x: Tensor, e_lambda: float, dims: Dims, keep: float = 0.0, scale: float = 1.0) -> Tensor:
    """The form for exporters and function transforms: 13 elementary operations, 15 where keep and scale are not 0 and 1.

    Half precision adds two casts. For a fixed size no shape is computed in the graph; for a dynamic one n follows the
    input.
    """
    wide = widen(x)
    return narrow(wide * _weight(two_pass_gate(wide, e_lambda, dims), keep, scale), x.dtype)


def two_pass_gate(wide: Tensor, e_lambda: float, dims: Dims) -> Tensor:
    """Return s by plain operations, differentiable any number of times."""
    n = positions(wide, dims)
    small = (wide - wide.mean(dims, keepdim=True)) * EXPORT_SCALE
    energy = (small * small).mean(dims, keepdim=True) * (4 * n / less_one(n)) + 4 * e_lambda * EXPORT_SCALE**2
    normal = small / energy.sqrt()
    return (normal * normal + 0.5).sigmoid()


def statistics(wide: Tensor, e_lambda: float, dims: Dims) -> tuple[Tensor, Tensor]:
    """Return mu and a of every plane.

    On a GPU by one `var_mean`, of which Inductor makes one reduction: one read of memory. On a CPU the second read is
    from cache, and two plain sums are faster than Welford's update (by a quarter compiled, threefold in eager mode).
    """
    n = positions(wide, dims)
    if wide.device.type == "cpu":
        mean = wide.mean(dims, keepdim=True)
        deviation = wide - mean
        energy = (deviation * deviation).sum(dims, keepdim=True)
        return mean, 1 / (energy * (4 / less_one(n)) + 4 * e_lambda)
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    return mean, 0.25 / (variance * (n / less_one(n)) + e_lambda)


def attend(x: Tensor, e_lambda: float, dims: Dims, keep: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, mu and a: the form for compilers."""
    wide = widen(x)
    mean, a = statistics(wide, e_lambda, dims)
    return narrow(wide * _weight(_gate(wide - mean, a), keep, scale), x.dtype), mean, a


def attend_backward(
    x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, dims: Dims, keep: float, scale: float
) -> Tensor:
    """Return dx from the gradient of y and from what `attend` was given and returned, in closed form.

    To differentiate it again, hand it `mean` and `a` as functions of x.
    """
    wide, wide_grad = widen(x), widen(grad)
    n = positions(x, dims)
    deviation = wide - mean
    s = _gate(deviation, a)
    h = wide_grad * wide * s * (1 - s)
    first = (h * deviation).sum(dims, keepdim=True)
    second = (h * deviation * deviation).sum(dims, keepdim=True)
    inner = h * deviation - first / n - (4 * a / less_one(n)) * second * deviation
    return narrow(wide_grad * _weight(s, keep, scale) + (2 * a * scale) * inner, x.dtype)


def _gate(deviation: Tensor, a: Tensor) -> Tensor:
    return torch.sigmoid(deviation * deviation * a + 0.5)


def _weight(s: Tensor, keep: float, scale: float) -> Tensor:
    """Return keep + scale s.

    A compiler fuses it, and is not asked what the numbers are: a branch on them would compile each value of a ramp anew.
    """
    is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if not is_compiled and keep == 0.0 and scale == 1.0:
        return s
    return s * scale + keep


class Attention(torch.autograd.Function):
    """`attend` and `attend_backward`: keeps x and two numbers per plane. Compilers trace it; it is never opaque."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float, dims: Dims, keep: float, scale: float) -> Tensor:
        """Attend `x`."""
        y, mean, a = attend(x, e_lambda, dims, keep, scale)
        ctx.save_for_backward(x, mean, a)
        ctx.numbers = e_lambda, dims, keep, scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of x. Under `create_graph` the kept statistics are constants: compute them again."""
        x, mean, a = ctx.saved_tensors
        e_lambda, dims, keep, scale = ctx.numbers
        if torch.is_grad_enabled():
            mean, a = statistics(widen(x), e_lambda, dims)
        return attend_backward(x, grad, mean, a, dims, keep, scale), None, None, None, None
