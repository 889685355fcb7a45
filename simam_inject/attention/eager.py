"""SimAM in eager mode, for (N, C, spatial) maps: x and two numbers per plane are kept for the backward.

A CPU runs `cpu`, a loop over cache-sized pieces. A GPU runs `kernels`, in Triton. All else runs `composite`: float64
and odd strides on a GPU, a machine without Triton, other devices.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from simam_inject.attention import composite, cpu

FIRST_CAPABILITY = (7, 0)
"""Compute capability below which Triton does not run."""


def simam(x: Tensor, e_lambda: float, keep: float, scale: float) -> Tensor:
    """Attend `x`; `composite` says what `keep` and `scale` are."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, Attention.apply(x, e_lambda, keep, scale))
    return implementation_for(x).forward(x, e_lambda, keep, scale, False)[0]


class Attention(torch.autograd.Function):
    """Attention whose backward reads x, mu and a."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float, keep: float, scale: float) -> Tensor:
        """Attend `x`."""
        ctx.implementation = implementation_for(x)
        y, mean, a = ctx.implementation.forward(x, e_lambda, keep, scale, True)
        ctx.save_for_backward(x, mean, a)
        ctx.numbers = e_lambda, keep, scale
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of x.

        Under `create_graph` the kept statistics would pass for constants: they are computed again, as functions of x.
        """
        x, mean, a = ctx.saved_tensors
        e_lambda, keep, scale = ctx.numbers
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            dims = composite.spatial_dims(x.dim(), 1)
            mean, a = composite.statistics(composite.widen(x), e_lambda, dims)
            return composite.attend_backward(x, grad, mean, a, dims, keep, scale), None, None, None
        # Many gradients at once (`is_grads_batched`, a vectorized jacobian) write into no buffer of one.
        implementation = COMPOSITE if _is_batched(grad) else ctx.implementation
        return implementation.backward(x, grad, mean, a, keep, scale), None, None, None


def _is_batched(grad: Tensor) -> bool:
    """Whether it is many gradients in one tensor; autograd's own batches are of an older kind than those of `vmap`."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_batchedtensor(grad)


class Implementation(NamedTuple):
    """A forward and its backward. With its last argument true, `forward` also returns mu and a for the backward."""

    forward: Callable[[Tensor, float, float, float, bool], tuple[Tensor, Tensor | None, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]


def implementation_for(x: Tensor) -> Implementation:
    """Return the implementation that fits the device, dtype and strides of `x`."""
    if x.device.type == "cpu":
        return CPU
    if x.device.type == "cuda":
        kernels = kernels_on(x.device)
        if kernels is not None and kernels.fits(x):
            return Implementation(kernels.forward, kernels.backward)
    return COMPOSITE


def _composite_forward(
    x: Tensor, e_lambda: float, keep: float, scale: float, saves: bool  # noqa: ARG001 - one signature for all
) -> tuple[Tensor, Tensor, Tensor]:
    return composite.attend(x, e_lambda, composite.spatial_dims(x.dim(), 1), keep, scale)


def _composite_backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, keep: float, scale: float) -> Tensor:
    return composite.attend_backward(x, grad, mean, a, composite.spatial_dims(x.dim(), 1), keep, scale)


CPU = Implementation(cpu.forward, cpu.backward)
COMPOSITE = Implementation(_composite_forward, _composite_backward)


@functools.cache
def kernels_on(device: torch.device) -> Any:
    """Return the module that launches Triton kernels on `device`, tried once; None, with a warning, if it cannot.

    Triton may be missing, or lack the C compiler that it builds its launcher with.
    """
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return None
    try:
        from simam_inject.attention import kernels

        kernels.forward(torch.zeros(1, 1, 1, 1, device=device), 1e-4, 0.0, 1.0, saves=False)
    except Exception as error:  # whatever the reason, the composite gives the same result
        warnings.warn(
            f"simam runs without its Triton kernels on {device}, several times slower in eager mode: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            stacklevel=2,
        )
        return None
    return kernels
