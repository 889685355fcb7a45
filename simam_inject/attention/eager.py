"""SimAM in eager mode, for (N, C, spatial) maps: x and two numbers per plane are kept for the backward.

A CPU runs `chunked`, a loop over cache-sized pieces. A GPU runs `kernels`, in Triton. All else runs `composite`:
float64 and odd strides on a GPU, a machine without Triton, other devices.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from simam_inject.attention import chunked, composite

FIRST_CAPABILITY = (7, 0)
"""Compute capability below which Triton does not run."""


def simam(x: Tensor, e_lambda: float) -> Tensor:
    """Attend `x`."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, Attention.apply(x, e_lambda))
    return way_for(x).forward(x, e_lambda, False)[0]


class Attention(torch.autograd.Function):
    """Attention whose backward reads x, mu and a."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float) -> Tensor:
        """Attend `x`."""
        way = way_for(x)
        y, mean, a = way.forward(x, e_lambda, True)
        ctx.save_for_backward(x, mean, a)
        ctx.e_lambda, ctx.way = e_lambda, way
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x.

        Under `create_graph` the kept statistics would pass for constants: they are computed again, as functions of x.
        """
        x, mean, a = ctx.saved_tensors
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            dims = composite.spatial_dims(x.dim(), 1)
            mean, a = composite.statistics(composite.widen(x), ctx.e_lambda, dims)
            return composite.attend_backward(x, grad, mean, a, dims), None
        # Many gradients at once (`is_grads_batched`, a vectorized jacobian) write into no buffer of one.
        way = COMPOSITE if _is_batched(grad) else ctx.way
        return way.backward(x, grad, mean, a), None


def _is_batched(grad: Tensor) -> bool:
    """Whether it is many gradients in one tensor; autograd's own batches are of an older kind than those of `vmap`."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_batchedtensor(grad)


class Way(NamedTuple):
    """One implementation. With its last argument true, `forward` also returns mu and a for the backward."""

    forward: Callable[[Tensor, float, bool], tuple[Tensor, Tensor | None, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def way_for(x: Tensor) -> Way:
    """Return the implementation that fits the device, dtype and strides of `x`."""
    if x.device.type == "cpu":
        return CHUNKED
    if x.device.type == "cuda":
        kernels = kernels_on(x.device)
        if kernels is not None and kernels.fits(x):
            return Way(kernels.forward, kernels.backward)
    return COMPOSITE


def _composite_forward(x: Tensor, e_lambda: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return composite.attend(x, e_lambda, composite.spatial_dims(x.dim(), 1))


def _composite_backward(x: Tensor, grad: Tensor, mean: Tensor, a: Tensor) -> Tensor:
    return composite.attend_backward(x, grad, mean, a, composite.spatial_dims(x.dim(), 1))


CHUNKED = Way(chunked.forward, chunked.backward)
COMPOSITE = Way(_composite_forward, _composite_backward)


@functools.cache
def kernels_on(device: torch.device) -> Any:
    """Return the module that launches Triton kernels on `device`, tried once; None, with a warning, if it cannot.

    Triton may be missing, or lack the C compiler that it builds its launcher with.
    """
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return None
    try:
        from simam_inject.attention.kernels import launch

        launch.forward(torch.zeros(1, 1, 1, 1, device=device), 1e-4, keep=False)
    except Exception as error:  # whatever the reason, the composite gives the same result
        warnings.warn(
            f"simam runs without its Triton kernels on {device}, several times slower in eager mode: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            stacklevel=2,
        )
        return None
    return launch
