"""SimAM on a CPU, eagerly: a few in-place passes over pieces of the batch small enough to stay in cache.

The cost is the exponential (about 1.1 of 1.9 ns an element). The rest is made to run in cache and without temporaries,
which is what the plain form loses its time on.
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

HALF = torch.tensor(0.5)
NO_REDUCTION = 0
"""Of `aten::mse_loss`, which so is (x - mu)^2 in one pass instead of two. The public binding has no `out`."""


def forward(x: Tensor, e_lambda: float, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial); with `keep`, also return mu and a, each of shape (N, C, 1, ...).

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    y = torch.empty_like(x)
    if not keep:
        for part, out in pieces(FORWARD_PIECE, x, y):
            _attend(part, out, e_lambda)
        return y, None, None
    mean = torch.empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=statistics_dtype(x.dtype))
    a = torch.empty_like(mean)
    for part, out, part_mean, part_a in pieces(FORWARD_PIECE, x, y, mean, a):
        _attend(part, out, e_lambda, part_mean, part_a)
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` kept."""
    result = torch.empty_like(x)
    if grad.stride() != x.stride():  # one copy is cheaper than a dozen passes over two layouts
        grad = torch.empty_like(x).copy_(grad)
    for piece in pieces(BACKWARD_PIECE, x, result, mean, a, grad):
        _attend_backward(*piece)
    return result


def pieces(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one batch and channel count into matching views: planes where all are contiguous, else samples."""
    batch, channels = tensors[0].shape[:2]
    elements = tensors[0].numel()
    if elements <= size:
        if elements:
            yield tensors
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(tensor.view(batch * channels, -1) for tensor in tensors)
    length = tensors[0].shape[0]
    step = max(1, size * length // elements)
    for start in range(0, length, step):
        yield tuple(tensor[start : start + step] for tensor in tensors)


def spatial(x: Tensor) -> Dims:
    """Return the dimensions to average over, of a map or of rows of planes."""
    return tuple(range(2, x.dim())) if x.dim() > 2 else (1,)


def _attend(x: Tensor, y: Tensor, e_lambda: float, mean: Tensor | None = None, a: Tensor | None = None) -> None:
    dims = spatial(x)
    wide = widen(x)
    buffer = y if wide is x else torch.empty_like(wide)
    torch.ops.aten.mse_loss.out(wide, torch.mean(wide, dims, keepdim=True, out=mean), NO_REDUCTION, out=buffer)
    energy = buffer.sum(dims, keepdim=True)
    slope = torch.mul(energy, 4 / less_one(positions(x, dims)), out=a).add_(4 * e_lambda).reciprocal_()
    buffer.mul_(slope).add_(0.5).sigmoid_().mul_(wide)
    if buffer is not y:
        y.copy_(buffer)


def _attend_backward(x: Tensor, result: Tensor, mean: Tensor, a: Tensor, grad: Tensor) -> None:
    """Write dx = g s + 2 r [ h z - sum(h z) / n - (4 / (n - 1)) sum(h z^2) z ], where r = sqrt(a) and z = r d.

    In z the closed form of `composite` needs two passes fewer.
    """
    dims = spatial(x)
    n = positions(x, dims)
    wide, wide_grad, root = widen(x), widen(grad), a.sqrt()
    z = (wide - mean).mul_(root)
    s = torch.addcmul(HALF.to(z.dtype), z, z).sigmoid_()
    dx = torch.mul(wide_grad, s, out=result if result.dtype == wide.dtype else None)
    product = torch.addcmul(dx, dx, s, value=-1, out=s).mul_(wide).mul_(z)  # g s (1 - s) x z
    first = product.sum(dims, keepdim=True)
    second = (product * z).sum(dims, keepdim=True)
    product.addcmul_(z, second.mul_(-4 / less_one(n))).sub_(first.div_(n))
    dx.addcmul_(product, root, value=2)
    if dx is not result:
        result.copy_(dx)
