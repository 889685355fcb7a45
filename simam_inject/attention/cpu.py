"""SimAM on a CPU in eager mode: a few in-place passes over pieces of the batch that are small enough for the cache.

The exponential takes a third of the time with AVX-512, and half of it with AVX2. The plain form loses most of its time
with temporaries and reads of main memory, which are avoided here. The formulas are in `composite`, with
keep = 1 - strength and scale = strength * gain, so that y = x (keep + scale s).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from simam_inject.attention.composite import counts, spatial_dims, statistics_dtype, widen

FORWARD_PIECE = 1 << 19
BACKWARD_PIECE = 1 << 18
"""Elements of one piece. A backward works on about four float32 tensors of this size, a forward on two: both 4 MB.
Smaller pieces fit into faster caches, but each costs some 15 microseconds (30 in a backward). A map of at most two
pieces is not cut."""
PADDING = 64
"""Elements between two tensors that are read together: at a multiple of 4096 bytes they would compete for the cache."""

NO_REDUCTION = 0
"""With it, `aten::mse_loss` is (x - mu)^2 in one pass instead of two. The public binding has no `out`."""


def forward(
    x: Tensor, e_lambda: float, strength: float, gain: float, saves: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend `x` of shape (N, C, spatial); with `saves`, also return mu and a, each of shape (N, C, 1, ...).

    Records no graph: call it without grad mode or inside an `autograd.Function`.
    """
    dtype, scratch = statistics_dtype(x.dtype), None
    if dtype != x.dtype:  # before y, so that the next map gets the same memory, still in cache, while y is in use
        largest = max((part.numel() for (part,) in _pieces(FORWARD_PIECE, [x])), default=0)
        scratch = x.new_empty(2 * largest + PADDING, dtype=dtype)
    y, mean, a = torch.empty_like(x), None, None
    tensors = [x, y]
    if saves:
        mean = x.new_empty((*x.shape[:2], *(1 for _ in x.shape[2:])), dtype=dtype)
        a = torch.empty_like(mean)
        tensors += [mean, a]
    floor, half = x.new_full((), 4 * e_lambda, dtype=dtype), x.new_full(x.shape[2:], 0.5, dtype=dtype)
    for piece in _pieces(FORWARD_PIECE, tensors):
        _attend(piece, scratch, floor, half, 1.0 - strength, strength * gain)
    return y, mean, a


def backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, strength: float, gain: float) -> Tensor:
    """Return the gradient of x from that of y and from what `forward` saved.

    A large x needs at most 1.5 times its size in addition to the result. In half precision the four float32 temporaries
    of a piece take eight times its size, so a large map is cut into at least eight pieces.
    """
    result = torch.empty_like(x)
    size, largest = BACKWARD_PIECE, max(2 * BACKWARD_PIECE, x.numel() * 3 // 16)
    if x.dtype != mean.dtype and x.numel() > 2 * size:
        size = min(size, x.numel() // 8)
    for piece in _pieces(size, [x, grad, result, mean, a]):
        walk = size if piece[0].numel() > largest else None
        _attend_backward(piece, walk, 1.0 - strength, strength * gain)
    return result


def _pieces(size: int, tensors: list[Tensor]) -> Iterable[Sequence[Tensor]]:
    """Cut tensors of one batch and channel count into matching views: planes where all are contiguous, else samples."""
    elements = tensors[0].numel()
    if elements <= 2 * size:
        return [tensors] if elements else []
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.flatten(0, 1).flatten(1) for tensor in tensors]
    return _cut(0, size, tensors)


def _cut(dim: int, size: int, tensors: Sequence[Tensor]) -> Iterable[Sequence[Tensor]]:
    """Cut along one dimension into views of about `size` elements."""
    step = max(1, size * tensors[0].shape[dim] // tensors[0].numel())
    return zip(*(torch.split(tensor, step, dim) for tensor in tensors), strict=True)


def _attend(
    piece: Sequence[Tensor], scratch: Tensor | None, floor: Tensor, half: Tensor, keep: float, scale: float
) -> None:
    """Write y = x (keep + scale sigmoid(a d^2 + 1/2)) and, if they are in the piece, mu and a.

    `floor` is 4 lambda, `half` is 1/2 at each position. With `scratch`, x and the energy are stacked there in float32.
    """
    x, y, *kept = piece
    mean, a = kept or (None, None)
    dims, wide, energy = spatial_dims(x.dim()) or (1,), x, y  # (1,): of rows of planes
    if scratch is not None:
        stack = scratch.as_strided((2, *x.shape), (x.numel() + PADDING, *torch.empty_like(x).stride()))
        wide, energy = stack.unbind(0)
        wide.copy_(x)
    torch.ops.aten.mse_loss.out(wide, torch.mean(wide, dims, keepdim=True, out=mean), NO_REDUCTION, out=energy)
    total = energy.sum(dims, keepdim=True)
    slope = torch.add(floor, total, alpha=4 / counts(x, dims)[1], out=a).reciprocal_()
    torch.addcmul(half.view(x.shape[dims[0] :]), energy, slope, out=energy)  # not vectorized with two numbers as inputs
    if (keep, scale) != (0.0, 1.0):
        torch.add(x.new_full((), keep, dtype=floor.dtype), energy.sigmoid_(), alpha=scale, out=energy).mul_(wide)
    elif scratch is not None:
        torch.ops.aten.glu.out(stack, 0, out=stack[1:])  # sigmoid and product in one pass
    else:
        energy.sigmoid_().mul_(x)
    if energy is not y:
        y.copy_(energy)


def _attend_backward(piece: Sequence[Tensor], walk: int | None, keep: float, scale: float) -> None:
    """Write dx = keep g + scale (g s + 2 r [ h z - sum(h z) / n - (4 / (n - 1)) sum(h z^2) z ]).

    Here r = sqrt(a) and z = r d: two passes fewer than the closed form of `composite`.

    With `walk`, the sample or plane is computed in segments of that many elements, cut along its outermost dimension:
    first the sums, and in `result` all terms that do not contain them; then the rest. In half precision, where
    `result` would be rounded twice, the second loop computes these terms again.
    """
    x, grad, result, mean, a = piece
    dims = spatial_dims(x.dim()) or (1,)
    n, less_one = counts(x, dims)
    root = a.sqrt()
    segments: list[Sequence[Tensor]] = [(x, grad, result)]
    if walk:
        segments = list(_cut(max(dims, key=x.stride), walk, segments[0]))
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for part, part_grad, out in segments:
        dx, z, product = _terms(part, part_grad, out, mean, root)
        first += product.sum(dims, keepdim=True)
        second += (product * z).sum(dims, keepdim=True)
        if walk:
            if dx is out:
                dx.addcmul_(product, root, value=2)
            del dx, z, product  # frees the memory for the next segment
    first.mul_(-1 / n)
    second.mul_(-4 / less_one)
    for part, part_grad, out in segments:
        if walk and out.dtype == mean.dtype:
            dx, product = out, (part - mean).mul_(second * root).add_(first)
        else:
            if walk:
                dx, z, product = _terms(part, part_grad, out, mean, root)
            product.addcmul_(z, second).add_(first)
            del z
        dx.addcmul_(product, root, value=2)
        if (keep, scale) != (0.0, 1.0):
            dx.mul_(scale).add_(part_grad, alpha=keep)
        if dx is not out:
            out.copy_(dx)
        del dx, product


def _terms(x: Tensor, grad: Tensor, result: Tensor, mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return g s, z and h z; the first is in `result` if its dtype allows."""
    wide = widen(x)
    # One copy takes less time than several passes over two layouts.
    wide_grad = widen(grad) if grad.stride() == x.stride() else torch.empty_like(wide).copy_(grad)
    z = (wide - mean).mul_(root)
    s = torch.addcmul(z.new_full((), 0.5), z, z).sigmoid_()
    gated = torch.mul(wide_grad, s, out=result if result.dtype == wide.dtype else wide_grad)
    product = torch.addcmul(gated, gated, s, value=-1, out=s).mul_(wide).mul_(z)  # g s (1 - s) x z
    return gated, z, product
