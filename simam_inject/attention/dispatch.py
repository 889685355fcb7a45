"""Selects the implementation for an (N, C, spatial) map and its gradient, which needs x and two numbers per plane.

A CPU runs `cpu`, a loop over cache-sized pieces. A GPU runs `kernels`, in Triton. All else runs `composite`: compiled
graphs, float64 and odd strides on a GPU, a machine without Triton, other devices.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from simam_inject.attention import composite, cpu

FIRST_CAPABILITY = (7, 0)
"""Compute capability below which Triton does not run."""


class Implementation(Protocol):
    """A forward and its backward."""

    def forward(
        self, x: Tensor, e_lambda: float, strength: float, gain: float, saves: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return y and, with `saves`, the mean and the slope a of every plane."""

    def backward(self, x: Tensor, grad: Tensor, mean: Tensor, a: Tensor, strength: float, gain: float) -> Tensor:
        """Return the gradient of x."""


def attend(x: Tensor, e_lambda: float, strength: float, gain: float) -> Tensor:
    """Attend `x`."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, Attention.apply(x, e_lambda, strength, gain))
    return implementation_for(x).forward(x, e_lambda, strength, gain, False)[0]


class Attention(torch.autograd.Function):
    """Attention whose backward reads x, mu and a. Compilers trace it; it is never opaque."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float, strength: float, gain: float) -> Tensor:
        """Attend `x`."""
        y, mean, a = implementation_for(x).forward(x, e_lambda, strength, gain, True)
        ctx.save_for_backward(x, mean, a)
        ctx.numbers = e_lambda, strength, gain
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of x.

        Under `create_graph` the kept statistics would pass for constants: they are computed again, as functions of x.
        Many gradients at once (`is_grads_batched`, a vectorized jacobian) write into no buffer of one.
        """
        x, mean, a = ctx.saved_tensors
        e_lambda, strength, gain = ctx.numbers
        implementation = implementation_for(x)
        if torch.is_grad_enabled():
            implementation = composite
            mean, a = composite.statistics(composite.widen(x), e_lambda)
        elif not torch.compiler.is_compiling() and _is_batched(grad):
            implementation = composite
        return implementation.backward(x, grad, mean, a, strength, gain), None, None, None


def _is_batched(grad: Tensor) -> bool:
    """Whether it is many gradients in one tensor; autograd's own batches are of an older kind than those of `vmap`."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_batchedtensor(grad)


def implementation_for(x: Tensor) -> Implementation:
    """Return the implementation that fits the device, dtype and strides of `x`."""
    if torch.compiler.is_compiling():
        return composite
    if x.device.type == "cpu":
        return cpu
    kernels = kernels_on(x.device) if x.device.type == "cuda" else None
    return kernels if kernels is not None and kernels.fits(x) else composite


@functools.cache
def kernels_on(device: torch.device) -> Any:
    """Return the module that launches Triton kernels on `device`, tried once; None, with a warning, if it cannot.

    Triton may be missing, or lack the C compiler that it builds its launcher with.
    """
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return None
    try:
        from simam_inject.attention import kernels

        kernels.forward(torch.zeros(1, 1, 1, 1, device=device), 1e-4, 1.0, 1.0, saves=False)
    except Exception as error:  # whatever the reason, the composite gives the same result
        warnings.warn(
            f"simam runs without its Triton kernels on {device}, several times slower in eager mode: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            stacklevel=2,
        )
        return None
    return kernels
