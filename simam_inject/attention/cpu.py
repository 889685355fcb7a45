"""SimAM on a CPU, eagerly: a few in-place passes over pieces of the batch small enough to stay in cache.

The cost is the exponential (about 1.1 of 1.9 ns an element). The rest is made to run in cache and without temporaries,
which is what the plain form loses its time on. The formulas and the meaning of `keep` and `scale` are in `composite`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from simam_inject.attention.composite import Dims, less_one, positions, statistics_dtype, widen

FORWARD_PIECE = 1 << 19
BACKWARD_PIECE = 1 << 18
"""Elements of one piece. A backward works on about five float32 tensors of that size, a forward on two: both near 4 MB.
Smaller pieces stay closer to the core, but lose more to the 1 to 2 microseconds that every operation costs."""

NO_REDUCTION = 0
"""Of `aten::mse_loss`, which so is (x - mu)^2 in one pass instead of two. The public binding has no `out`."""


def forward(
    x: Tensor, e_lambda: float, keep: float, scale: float, saves: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial); with `saves`, also return mu and a, each of shape (N, C, 1, ...).

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    y = torch.empty_like(x)
    if not saves:
        for part, out in _pieces(FORWARD_PIECE, x, y):
            _attend(part, out, e_lambda, keep, scale)
        return y, None, None
    mean = x.new_empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=statistics_dtype(x.dtype))
    a = torch.empty_like(mean)
    for part, out, part_mean, part_a in _pieces(FORWARD_PIECE, x, y, mean, a):
        _attend(part, out, e_lambda, keep, scale, part_mean, part_a)
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, keep: float, scale: float) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` saved.

    Beside the result it needs room for a few pieces, however large a sample is.
    """
    result = torch.empty_like(x)
    if grad.stride() != x.stride():  # one copy is cheaper than a dozen passes over two layouts
        grad = torch.empty_like(x).copy_(grad)
    for piece in _pieces(BACKWARD_PIECE, x, grad, result, mean, a):
        _attend_backward(*piece, keep, scale)
    return result


def _pieces(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one batch and channel count into matching views: planes where all are contiguous, else samples."""
    batch, channels = tensors[0].shape[:2]
    elements = tensors[0].numel()
    if elements <= size:
        if elements:
            yield tensors
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(tensor.view(batch * channels, -1) for tensor in tensors)
    yield from _cut(0, size, *tensors)


def _cut(dim: int, size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut along one dimension into views of about `size` elements."""
    length = tensors[0].shape[dim]
    step = max(1, size * length // tensors[0].numel())
    for start in range(0, length, step):
        yield tuple(tensor.narrow(dim, start, min(step, length - start)) for tensor in tensors)


def _spatial(x: Tensor) -> Dims:
    """Return the dimensions to average over, of a map or of rows of planes."""
    return tuple(range(2, x.dim())) if x.dim() > 2 else (1,)


def _product(one: Tensor, other: Tensor, scale: float, out: Tensor | None) -> Tensor:
    """Return scale * one * other in one pass."""
    if scale == 1.0:
        return torch.mul(one, other, out=out)
    return torch.addcmul(one.new_zeros(()), one, other, value=scale, out=out)


def _attend(
    x: Tensor, y: Tensor, e_lambda: float, keep: float, scale: float, mean: Tensor | None = None, a: Tensor | None = None
) -> None:
    dims = _spatial(x)
    wide = widen(x)
    buffer = y if wide is x else torch.empty_like(wide)
    torch.ops.aten.mse_loss.out(wide, torch.mean(wide, dims, keepdim=True, out=mean), NO_REDUCTION, out=buffer)
    energy = buffer.sum(dims, keepdim=True)
    slope = torch.mul(energy, 4 / less_one(positions(x, dims)), out=a).add_(4 * e_lambda).reciprocal_()
    _product(buffer.mul_(slope).add_(0.5).sigmoid_(), wide, scale, buffer)
    if keep != 0.0:
        buffer.add_(wide, alpha=keep)
    if buffer is not y:
        y.copy_(buffer)


def _attend_backward(
    x: Tensor, grad: Tensor, result: Tensor, mean: Tensor, a: Tensor, keep: float, scale: float
) -> None:
    """Write dx = g (keep + scale s) + 2 r [ h z - sum(h z) / n - (4 / (n - 1)) sum(h z^2) z ].

    Here r = sqrt(a), z = r d and h has the factor `scale`: two passes fewer than the closed form of `composite`. A
    sample too large for one piece is walked along twice, first for the sums.
    """
    dims = _spatial(x)
    n = positions(x, dims)
    root = a.sqrt()
    outermost = max(dims, key=x.stride)
    segments = [(x, grad, result)]
    if x.numel() > 2 * BACKWARD_PIECE:
        segments = list(_cut(outermost, BACKWARD_PIECE, x, grad, result))
    first = torch.zeros_like(mean)
    second = torch.zeros_like(mean)
    for segment in segments:
        terms = _terms(*segment, mean, root, scale)
        _, z, product = terms
        first += product.sum(dims, keepdim=True)
        second += (product * z).sum(dims, keepdim=True)
    first.div_(n)
    second.mul_(-4 / less_one(n))
    for segment in segments:
        dx, z, product = terms if len(segments) == 1 else _terms(*segment, mean, root, scale)
        dx.addcmul_(product.addcmul_(z, second).sub_(first), root, value=2)
        if keep != 0.0:
            dx.add_(segment[1], alpha=keep)
        if dx is not segment[2]:
            segment[2].copy_(dx)


def _terms(
    x: Tensor, grad: Tensor, result: Tensor, mean: Tensor, root: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return g s and h z, both with the factor `scale`, and z; the first in `result` where its dtype allows."""
    wide, wide_grad = widen(x), widen(grad)
    z = (wide - mean).mul_(root)
    s = torch.addcmul(z.new_full((), 0.5), z, z).sigmoid_()
    gated = _product(wide_grad, s, scale, result if result.dtype == wide.dtype else None)
    product = torch.addcmul(gated, gated, s, value=-1, out=s).mul_(wide).mul_(z)  # g s (1 - s) x z
    return gated, z, product
