"""The gate before every timing: what is fast must be right."""

from collections.abc import Callable

import torch

from simam_inject.verification.formula import formula

LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Of the relative L2 distance to float64."""


class WrongResultError(RuntimeError):
    """A variant that is not SimAM."""


def pass_gate(variants: dict[str, Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor, e_lambda: float) -> None:
    """Compare values and, where `x` requires one, gradients with float64.

    Raises:
        WrongResultError: a variant is further off than one rounding explains.
    """
    wide = x.detach().double().requires_grad_(x.requires_grad)
    y = formula(wide, e_lambda, (2, 3))
    grad = torch.randn_like(x)
    expected = [y.detach()]
    if x.requires_grad:
        expected.append(torch.autograd.grad(y, wide, grad.double())[0])
    for name, variant in variants.items():
        result = variant(x)
        found = [result.detach(), *(torch.autograd.grad(result, x, grad) if x.requires_grad else ())]
        for what, one, other in zip(("value", "gradient"), found, expected, strict=False):
            distance = float((one.double() - other).norm() / other.norm())
            if not distance <= LIMITS[x.dtype]:
                limit = LIMITS[x.dtype]
                raise WrongResultError(
                    f"{name} on {tuple(x.shape)}, {x.dtype}: {what} is {distance:.1e} off, limit {limit:.0e}"
                )
