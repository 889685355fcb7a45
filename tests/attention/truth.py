"""Float64 truth of the operator and of its gradient, and how far a result may be from it."""

import torch

from tests.engine.oracle import simam_in_float64

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Of the relative L2 distance: one rounding to the dtype, and float32 sums."""


def truth(x, grad, e_lambda=1e-4, channel_dim=1):
    """Return y and the gradient of x, both in float64."""
    wide = x.detach().double().requires_grad_()
    y = simam_in_float64(wide, e_lambda, channel_dim)
    (dx,) = torch.autograd.grad(y, wide, grad.double())
    return y.detach(), dx


def distance(found, expected):
    """Return |found - expected| / |expected|."""
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    assert torch.isfinite(found).all()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def assert_true(operator, x, e_lambda=1e-4, channel_dim=1, tolerance=None):
    """Check value, gradient, dtype and strides of `operator(x)`."""
    tolerance = TOLERANCE[x.dtype] if tolerance is None else tolerance
    leaf = x.detach().requires_grad_()  # keeps the strides of x
    grad = torch.randn(x.shape).to(x.dtype)
    y = operator(leaf)
    (dx,) = torch.autograd.grad(y, leaf, grad)
    expected = truth(x, grad, e_lambda, channel_dim)
    assert y.dtype == dx.dtype == x.dtype
    assert distance(y, expected[0]) <= tolerance
    assert distance(dx, expected[1]) <= tolerance
    with torch.no_grad():
        assert distance(operator(leaf), expected[0]) <= tolerance
    return y, dx
