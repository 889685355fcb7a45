"""`simam`: one formula, and the choice of its implementation.

    mode                                          implementation
    eager, on a CPU                               `cpu`, an in-place loop over cache-sized pieces
    eager, on a GPU                               `kernels`, in Triton
    under `torch.compile`                         `composite.forward` and the closed form `composite.backward`
    torch.export, ONNX, torch.jit.trace           `composite.two_pass`
    torch.func, forward-mode AD, dispatch modes   `composite.two_pass`
    torch.fx.symbolic_trace                       none: recorded as one call of `simam`

`composite.forward` is also used on other devices, on a GPU without Triton, and for float64 and irregular strides on a
GPU. x and two numbers per plane are saved for a backward.

None of them is an opaque operator: on a GPU SimAM is bound by memory, and a compiler can fuse plain operations with
their neighbours, which saves more time than any kernel.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_unary

from simam_inject.attention import composite, cpu, tiles
from simam_inject.attention.arguments import check_channel_dim, check_input, check_number
from simam_inject.errors import describe_exception

SMALLEST, LARGEST = 1e-30, 1e30
"""Beyond these a float32 `a` would be infinite or zero, and a constant map NaN."""
FIRST_CAPABILITY = (7, 0)
"""Compute capability below which Triton does not run."""


def simam(
    x: Tensor, e_lambda: float = 1e-4, *, channel_dim: int = 1, strength: float = 1.0, gain: float = 1.0
) -> Tensor:
    """Return x * ((1 - strength) + strength * gain * gate), where the gate is the SimAM importance of each position.

    Args:
        x: feature map; float16, bfloat16, float32 or float64, dense, any strides. It is never changed.
        e_lambda: the regularizer lambda, finite and above 0. It is absolute, not relative to the signal: the authors
            use 0.1 on ImageNet and COCO, 1e-4 is the default of their class. Beyond 1e-30 and 1e30 the nearer of the
            two is used, for every dtype.
        channel_dim: 1 for (N, C, spatial), -1 for (N, spatial, C). It names the order of the dimensions; the memory
            format is free, and preserved.
        strength: from 0 (the identity) to 1 (SimAM), for a warm start of a trained network.
        gain: finite and above 0; the gate is multiplied by it, to preserve the scale of the signal. Under
            `torch.compile`, strength and gain are not checked, since each new value would be compiled again.

    Returns:
        A new tensor of the shape, dtype and memory format of `x`, at strength 0 a copy of it, whose gradient is the
        incoming one. Statistics are float32 for float16 and bfloat16, so large maps do not overflow. A map of one
        position has the gate sigmoid(0.5). Where a square exceeds the range of the statistics, from |x| of about 1e18
        in float32 and bfloat16, the result is NaN.

    Gradients: of any order in eager mode, under `torch.func` and batched. Compiled, of the first order only: the
        default backend raises on a second, and `backend="eager"` treats the first gradient as a constant. Differentiate
        twice outside `torch.compile`.

    Raises:
        ArgumentError: `x` is not a dense real floating-point tensor of rank 3 to 5, or an argument is out of range.

    Shape:
        (N, C, L), (N, C, H, W) or (N, C, D, H, W), or with C last; same as the input.

    Source:
        Yang et al., "SimAM", ICML 2021, PMLR 139:11863-11874; written from the formula.

    Example:
        >>> import torch
        >>> simam(torch.ones(1, 1, 2, 2)).unique()
        tensor([0.6225])
        >>> simam(torch.ones(1, 1, 2, 2), strength=0.0).unique()
        tensor([1.])
    """
    if has_torch_function_unary(x):  # fx proxies and tensor subclasses with a view of their own
        numbers = {} if (strength, gain) == (1.0, 1.0) else {"strength": strength, "gain": gain}
        result: Tensor = handle_torch_function(simam, (x,), x, e_lambda, channel_dim=channel_dim, **numbers)
        return result
    e_lambda, dims = _checked(x, e_lambda, channel_dim)
    if not composite.is_compiled():  # compiled, the two may be symbols, whose values no branch may use
        strength, gain = check_number("strength", strength), check_number("gain", gain)
        if strength == 0.0:
            return x.clone()
        if torch.compiler.is_compiling() or not _is_plain_eager(x):
            return composite.two_pass(x, e_lambda, dims, strength, gain)
    if channel_dim == -1:
        return _attend(x.movedim(-1, 1), e_lambda, strength, gain).movedim(1, -1)
    return _attend(x, e_lambda, strength, gain)


def gate(x: Tensor, e_lambda: float = 1e-4, *, channel_dim: int = 1) -> Tensor:
    """Return the gate alone, in (0.62, 1): what `simam` multiplies `x` by at strength 1 and gain 1.

    Arguments, shapes and errors are those of `simam`; the result is float64 for float64, otherwise float32, and
    differentiable.

    Example:
        >>> import torch
        >>> gate(torch.ones(1, 1, 2, 2, dtype=torch.float16)).unique()
        tensor([0.6225])
    """
    if has_torch_function_unary(x):
        result: Tensor = handle_torch_function(gate, (x,), x, e_lambda, channel_dim=channel_dim)
        return result
    e_lambda, dims = _checked(x, e_lambda, channel_dim)
    return composite.two_pass_gate(composite.widen(x), e_lambda, dims)


def _checked(x: object, e_lambda: object, channel_dim: object) -> tuple[float, tuple[int, ...]]:
    """Return lambda within its range, and the spatial dimensions."""
    rank = check_input(x).dim()
    number = min(max(check_number("e_lambda", e_lambda), SMALLEST), LARGEST)
    return number, composite.spatial_dims(rank, check_channel_dim(channel_dim))


def _is_plain_eager(x: Tensor) -> bool:
    """Whether nothing records or transforms the operations, so that in-place loops and kernels are possible."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )


def _attend(x: Tensor, e_lambda: float, strength: float, gain: float) -> Tensor:
    """Attend `x` of shape (N, C, spatial)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, Attention.apply(x, e_lambda, strength, gain))
    y: Tensor = implementation_for(x).forward(x, e_lambda, strength, gain, False)[0]
    return y


class Attention(torch.autograd.Function):
    """Attention with a backward from x, mu and a. Compilers trace it; it is never opaque."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float, strength: float, gain: float) -> Any:
        """Attend `x`."""
        y, mean, a = implementation_for(x).forward(x, e_lambda, strength, gain, True)
        ctx.save_for_backward(x, mean, a)
        ctx.numbers = e_lambda, strength, gain
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of x.

        With `create_graph`, the saved statistics would be constants, so they are computed again as functions of x.
        A batch of gradients (`is_grads_batched`, a vectorized jacobian) cannot be written into the buffer of one.
        """
        x, mean, a = ctx.saved_tensors
        e_lambda, strength, gain = ctx.numbers
        implementation = implementation_for(x)
        if torch.is_grad_enabled() or (not torch.compiler.is_compiling() and _is_batched(grad)):
            implementation = composite
            mean, a = composite.statistics(composite.widen(x), e_lambda)
        return implementation.backward(x, grad, mean, a, strength, gain), None, None, None


def _is_batched(grad: Tensor) -> bool:
    """Whether it is a batch of gradients; those of autograd are of an older kind than those of `vmap`."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_batchedtensor(grad)


def implementation_for(x: Tensor) -> Any:
    """Return the module whose `forward` and `backward` fit the device, dtype and strides of `x`."""
    if torch.compiler.is_compiling():
        return composite
    if x.device.type == "cpu":
        return cpu
    kernels = kernels_on(x.device) if x.device.type == "cuda" else None
    return kernels if kernels is not None and tiles.fits(x) else composite


@functools.cache
def kernels_on(device: torch.device) -> Any:
    """Return the module of the Triton kernels if they run on `device`, tried once; otherwise None, with a warning.

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
            f"{describe_exception(error)}",
            stacklevel=2,
        )
        return None
    return kernels
