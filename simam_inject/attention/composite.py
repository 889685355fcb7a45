"""SimAM in plain, out-of-place tensor operations, for compilers, exporters and transforms.

Per sample and channel, over the n positions of a map x:

    mu = mean(x)    d = x - mu    v = sum(d^2) / (n - 1)
    a  = 1 / (4 (v + lambda))     s = sigmoid(a d^2 + 1/2)     y = x (1 - strength + strength gain s)

and, for the gradient g of y and with h = g x s (1 - s):

    dx = g (1 - strength + strength gain s)
         + 2 a strength gain [ h d - sum(h d) / n - (4 a / (n - 1)) sum(h d^2) d ]

n - 1 is max(n - 1, 1) throughout, so the gate of a 1x1 map is sigmoid(1/2) and not NaN. Everything is computed in
float32 (float64 for float64) and rounded once, to the dtype of x, so autocast changes nothing.

`forward` and `backward` take maps of shape (N, C, spatial), like those of `cpu` and `kernels`.

Source: Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
ICML 2021, PMLR 139:11863-11874; written from the formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EXPORT_SCALE = 1 / 16
"""Deviations are shrunk by this before they are squared, for runtimes that run an exported float32 graph in float16:
the squares then stay finite up to |d| = 4096, where plain ones overflow at 256."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of means and variances for a map of `dtype`: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """`x` in the dtype of its statistics."""
    return cast_to(statistics_dtype(x.dtype), x)


def cast_to(dtype: torch.dtype, x: Tensor) -> Tensor:
    """`x` in `dtype`. A cast that changes nothing would be a node in an exported graph."""
    return x if x.dtype == dtype else x.to(dtype)


def spatial_dims(rank: int, channel_dim: int = 1) -> tuple[int, ...]:
    """The dimensions of a map that SimAM averages over."""
    return tuple(range(2, rank)) if channel_dim == 1 else tuple(range(1, rank - 1))


def counts(x: Tensor, dims: tuple[int, ...]) -> tuple[Any, Any]:
    """Return n and max(n - 1, 1): ints, SymInts, or 0-dim tensors while `torch.jit.trace` records."""
    n: Any = 1
    for dim in dims:  # math.prod cannot be traced over sizes
        n = n * x.shape[dim]
    if isinstance(n, Tensor):  # a quotient of integers would have the default dtype
        n = n.to(x.dtype)
        return n, (n - 1).clamp(min=1)
    return n, max(n - 1, 1)


def two_pass(x: Tensor, e_lambda: float, dims: tuple[int, ...], strength: float = 1.0, gain: float = 1.0) -> Tensor:
    """The form for exporters and function transforms: 13 elementary operations, two more for strength or gain.

    Half precision adds two casts. For a fixed size no shape is computed in the graph; for a dynamic one n follows the
    input.
    """
    wide = widen(x)
    return cast_to(x.dtype, wide * _weight(two_pass_gate(wide, e_lambda, dims), strength, gain))


def two_pass_gate(wide: Tensor, e_lambda: float, dims: tuple[int, ...]) -> Tensor:
    """Return s by plain operations, differentiable any number of times."""
    n, less_one = counts(wide, dims)
    small = (wide - wide.mean(dims, keepdim=True)) * EXPORT_SCALE
    energy = (small * small).mean(dims, keepdim=True) * (4 * n / less_one) + 4 * e_lambda * EXPORT_SCALE**2
    normal = small / energy.sqrt()
    return torch.sigmoid(normal * normal + 0.5)


def is_compiled() -> bool:
    """Whether `torch.compile` traces this, and not an exporter.

    Up to torch 2.11 `torch.compiler.is_exporting()` is also true under `torch.compile`, so the flag itself is read.
    """
    return torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag


def forward(
    x: Tensor, e_lambda: float, strength: float, gain: float, saves: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return y and, with `saves`, mu and a: the form for compilers, and for devices without an own implementation."""
    wide = widen(x)
    mean, a = statistics(wide, e_lambda)
    y = cast_to(x.dtype, wide * _weight(_gate(wide - mean, a), strength, gain))
    return (y, mean, a) if saves else (y, None, None)


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, strength: float, gain: float) -> Tensor:
    """Return dx in closed form from the gradient of y and from the arguments and results of `forward`.

    It can be differentiated if `mean` and `a` are functions of x. Products begin with a function of x, whose memory
    format they get, whatever that of the gradient is.
    """
    wide, wide_grad, dims = widen(x), widen(grad), spatial_dims(x.dim())
    n, less_one = counts(x, dims)
    deviation = wide - mean
    s = _gate(deviation, a)
    h = wide * wide_grad * s * (1 - s)
    first = (h * deviation).sum(dims, keepdim=True)
    second = (h * deviation * deviation).sum(dims, keepdim=True)
    inner = h * deviation - first / n - (4 * a / less_one) * second * deviation
    return cast_to(x.dtype, _weight(s, strength, gain) * wide_grad + (2 * a * strength * gain) * inner)


def statistics(wide: Tensor, e_lambda: float) -> tuple[Tensor, Tensor]:
    """Return mu and a of every plane.

    By two plain sums. `torch.var_mean` reads memory once, but Welford's update takes longer than a second read: up to a
    quarter compiled, and a factor of three in eager mode on a CPU.
    """
    dims = spatial_dims(wide.dim())
    _, less_one = counts(wide, dims)
    mean = wide.mean(dims, keepdim=True)
    deviation = wide - mean
    energy = (deviation * deviation).sum(dims, keepdim=True)
    return mean, 1 / (energy * (4 / less_one) + 4 * e_lambda)


def _gate(deviation: Tensor, a: Tensor) -> Tensor:
    return torch.sigmoid(deviation * deviation * a + 0.5)


def _weight(s: Tensor, strength: float, gain: float) -> Tensor:
    """Return (1 - strength) + strength * gain * s.

    Compiled, it does not branch on the two numbers, since each value of a ramp would be compiled again. With torch
    2.11, so would a product of the two numbers, hence a tensor is multiplied by one after the other.
    """
    if is_compiled():
        return s * strength * gain + (1.0 - strength)
    if strength == gain == 1.0:
        return s
    return s * (strength * gain) + (1.0 - strength)
