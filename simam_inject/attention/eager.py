"""SimAM in eager mode: (N, C, spatial) maps, x and two numbers per plane kept for the backward."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from simam_inject.attention import chunked, composite


def simam(x: Tensor, e_lambda: float) -> Tensor:
    """Attend `x` of shape (N, C, spatial)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, EagerAttention.apply(x, e_lambda))
    return _forward(x, e_lambda)[0]


class EagerAttention(torch.autograd.Function):
    """Attention whose backward reads x, mu and a; differentiated twice, it falls back on the plain closed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float) -> Tensor:
        """Attend `x`."""
        y, mean, a = _forward(x, e_lambda, keep=True)
        ctx.save_for_backward(x, mean, a)
        ctx.e_lambda = e_lambda
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x. Under `create_graph` the kept statistics would be constants, and are not used."""
        x, mean, a = ctx.saved_tensors
        dims = composite.spatial_dims(x.dim(), 1)
        if torch.is_grad_enabled():
            mean, a = composite.statistics(composite.widen(x), ctx.e_lambda, dims)
        if torch.is_grad_enabled() or not _is_cpu(x):
            return composite.attend_backward(x, grad, mean, a, dims), None
        return chunked.backward(x, grad, mean, a), None


def _is_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _forward(x: Tensor, e_lambda: float, keep: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if not _is_cpu(x):
        return composite.attend(x, e_lambda, composite.spatial_dims(x.dim(), 1))
    return chunked.forward(x, e_lambda, keep)
