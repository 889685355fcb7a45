"""SimAM on a CPU, eagerly: a few in-place passes over pieces of the batch small enough to stay in cache.

The cost is the exponential (about 1.1 of 1.9 ns an element). The rest is made to run in cache and without temporaries,
which is what the plain form loses its time on. The formulas are in `composite`; here keep = 1 - strength and
scale = strength * gain, so that y = x (keep + scale s).
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
LARGE, LARGE_HALF = 2 * BACKWARD_PIECE, 8 * BACKWARD_PIECE
"""Elements of a sample or plane above which its backward walks in pieces: its temporaries would take five times its
size. In half precision the walk can cost a quarter more time, so it starts later."""

NO_REDUCTION = 0
"""Of `aten::mse_loss`, which so is (x - mu)^2 in one pass instead of two. The public binding has no `out`."""


def forward(
    x: Tensor, e_lambda: float, strength: float, gain: float, saves: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial); with `saves`, also return mu and a, each of shape (N, C, 1, ...).

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    y = torch.empty_like(x)
    keep, scale = 1.0 - strength, strength * gain
    if not saves:
        for part, out in _pieces(FORWARD_PIECE, x, y):
            _attend(part, out, None, None, e_lambda, keep, scale)
        return y, None, None
    mean = x.new_empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=statistics_dtype(x.dtype))
    a = torch.empty_like(mean)
    for part, out, part_mean, part_a in _pieces(FORWARD_PIECE, x, y, mean, a):
        _attend(part, out, part_mean, part_a, e_lambda, keep, scale)
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, strength: float, gain: float) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` saved.

    Beside the result it needs room for a few pieces, however large a sample is.
    """
    result = torch.empty_like(x)
    keep, scale = 1.0 - strength, strength * gain
    large = LARGE if x.dtype == mean.dtype else LARGE_HALF
    for part, part_grad, out, part_mean, part_a in _pieces(BACKWARD_PIECE, x, grad, result, mean, a):
        run = _walk_backward if part.numel() > large else _attend_backward
        run(part, part_grad, out, part_mean, part_a, keep, scale)
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
    x: Tensor, y: Tensor, mean: Tensor | None, a: Tensor | None, e_lambda: float, keep: float, scale: float
) -> None:
    dims = _spatial(x)
    wide = widen(x)
    buffer = y if wide is x else torch.empty_like(wide)
    torch.ops.aten.mse_loss.out(wide, torch.mean(wide, dims, keepdim=True, out=mean), NO_REDUCTION, out=buffer)
    energy = buffer.sum(dims, keepdim=True)
    slope = torch.mul(energy, 4 / less_one(positions(x, dims)), out=a).add_(4 * e_lambda).reciprocal_()
    gate = buffer.mul_(slope).add_(0.5).sigmoid_()
    if keep == 0.0:
        _product(gate, wide, scale, buffer)
    else:
        torch.add(gate.new_full((), keep), gate, alpha=scale, out=gate).mul_(wide)
    if buffer is not y:
        y.copy_(buffer)


def _attend_backward(
    x: Tensor, grad: Tensor, result: Tensor, mean: Tensor, a: Tensor, keep: float, scale: float
) -> None:
    """Write dx = g (keep + scale s) + 2 r [ h z - sum(h z) / n - (4 / (n - 1)) sum(h z^2) z ].

    Here r = sqrt(a), z = r d and h has the factor `scale`: two passes fewer than the closed form of `composite`.
    """
    dims = _spatial(x)
    n = positions(x, dims)
    root = a.sqrt()
    dx, z, product = _terms(x, grad, result, mean, root, scale)
    first = product.sum(dims, keepdim=True)
    second = (product * z).sum(dims, keepdim=True)
    product.addcmul_(z, second.mul_(-4 / less_one(n))).sub_(first.div_(n))
    dx.addcmul_(product, root, value=2)
    if keep != 0.0:
        dx.add_(grad, alpha=keep)
    if dx is not result:
        result.copy_(dx)


def _walk_backward(x: Tensor, grad: Tensor, result: Tensor, mean: Tensor, a: Tensor, keep: float, scale: float) -> None:
    """Write the same for a sample or plane too large for one piece, in two walks along its outermost dimension.

    What does not wait for the sums is left in `result` by the first walk. Half precision would be rounded there, so the
    second walk computes it again.
    """
    dims = _spatial(x)
    n = positions(x, dims)
    root = a.sqrt()
    is_wide = result.dtype == mean.dtype
    segments = list(_cut(max(dims, key=x.stride), BACKWARD_PIECE, x, grad, result))
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for part, part_grad, out in segments:
        dx, z, product = _terms(part, part_grad, out, mean, root, scale)
        first += product.sum(dims, keepdim=True)
        second += (product * z).sum(dims, keepdim=True)
        if is_wide:
            dx.addcmul_(product, root, value=2)
        del dx, z, product  # before the next segment needs their like
    first.mul_(root).mul_(-2 / n)
    second.mul_(a if is_wide else root).mul_(-8 / less_one(n))
    for part, part_grad, out in segments:
        if is_wide:
            dx, z = out, part - mean
        else:
            dx, z, product = _terms(part, part_grad, out, mean, root, scale)
            dx.addcmul_(product, root, value=2)
            del product
        dx.addcmul_(z, second).add_(first)
        if keep != 0.0:
            dx.add_(part_grad, alpha=keep)
        if not is_wide:
            out.copy_(dx)
        del dx, z


def _terms(
    x: Tensor, grad: Tensor, result: Tensor, mean: Tensor, root: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return g s, z and h z, first and last with the factor `scale`; the first is in `result` if its dtype allows."""
    wide = widen(x)
    # One copy is cheaper than several passes over two layouts.
    wide_grad = widen(grad) if grad.stride() == x.stride() else torch.empty_like(wide).copy_(grad)
    z = (wide - mean).mul_(root)
    s = torch.addcmul(z.new_full((), 0.5), z, z).sigmoid_()
    gated = _product(wide_grad, s, scale, result if result.dtype == wide.dtype else None)
    product = torch.addcmul(gated, gated, s, value=-1, out=s).mul_(wide).mul_(z)  # g s (1 - s) x z
    return gated, z, product
