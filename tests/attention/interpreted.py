"""The Triton kernels against float64 truth: run by `test_kernels` with the interpreter on a CPU, or on a GPU.

Not collected by itself: the interpreter has to be chosen before Triton is imported, and would slow every other test.
"""

import pytest
import torch

from simam_inject.attention import eager, simam
from simam_inject.attention import kernels, tiling
from tests.attention.test_values import STRIDED, laid_out
from tests.attention.truth import TOLERANCE, assert_true

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LIMIT = TOLERANCE | {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""The interpreter truncates to bfloat16, where a GPU rounds."""


@pytest.fixture(autouse=True)
def _kernels_everywhere(monkeypatch):
    monkeypatch.setattr(eager, "CPU", eager.Implementation(kernels.forward, kernels.backward))


@pytest.fixture
def kinds(monkeypatch):
    """The tilings that were chosen."""
    chosen = []

    def choose(*arguments):
        chosen.append(tiling.choose(*arguments))
        return chosen[-1]

    monkeypatch.setattr(launch, "choose", choose)
    return chosen


def check(x, e_lambda=0.01):
    assert kernels.fits(x)
    return assert_true(lambda t: simam(t, e_lambda), x.to(DEVICE), e_lambda, tolerance=LIMIT[x.dtype])


HALVES = [torch.float16, torch.bfloat16]
SHAPES = [(2, 3, 1, 1), (2, 5, 1, 3), (2, 33, 7, 7), (1, 3, 13, 17), (1, 70, 6, 6), (1, 3, 4, 5, 6)]
WHOLE = [(shape, torch.float32) for shape in SHAPES] + [(shape, dtype) for shape in SHAPES[2:4] for dtype in HALVES]
LARGE = [((1, 3, 13, 17), torch.float32), ((1, 5, 5, 9), torch.float32), *(((1, 5, 7, 9), dtype) for dtype in HALVES)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "dtype"), WHOLE, ids=str)
def test_whole_planes(shape, dtype, layout, kinds):
    x = laid_out((torch.randn(shape) * 2 + 1).to(dtype), layout)
    y, dx = check(x)
    assert y.stride() == dx.stride() == x.stride()
    assert all(kind.is_whole for kind in kinds)


@pytest.mark.parametrize("programs", [1, 40], ids=["looped", "split"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "dtype"), LARGE, ids=str)
def test_planes_too_large_for_the_chip(shape, dtype, layout, programs, kinds, monkeypatch):
    small = {"PROGRAMS": programs, "SMALL_TILE": 32, "WIDEST": 4, "NARROWEST": 2, "ALIGNED": 1}
    for name, value in small.items():
        monkeypatch.setattr(tiling, name, value)
    monkeypatch.setattr(launch, "FORWARD_ROOM", 32)
    monkeypatch.setattr(launch, "BACKWARD_ROOM", 16)
    check(laid_out((torch.randn(shape) * 2 + 1).to(dtype), layout))
    assert not any(kind.is_whole for kind in kinds)
    assert all((kind.parts > 1) == (programs > 1) for kind in kinds)


@pytest.mark.parametrize(("shape", "layout"), [((1, 1, 129, 128), "contiguous"), ((1, 17, 46, 45), "channels_last")])
def test_real_large_planes_are_split(shape, layout, kinds):
    check(laid_out(torch.randn(shape), layout))
    assert all(kind.parts > 1 for kind in kinds)


@pytest.mark.parametrize("std", [1e-3, 300.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_spreads(std, dtype):
    check((torch.randn(1, 2, 20, 20) * std).to(dtype), 1e-4)


@pytest.mark.parametrize("e_lambda", [1e-30, 1e30])
def test_constant_maps_and_extreme_lambdas(e_lambda):
    check(torch.full((1, 2, 3, 3), 5.0), e_lambda)


@pytest.mark.parametrize("view", STRIDED)
def test_views(view):
    x = STRIDED[view](torch.randn(2, 4, 9, 10).to(DEVICE))
    if kernels.fits(x):
        check(x)
    else:
        assert view in {"columns", "permuted", "expanded batch", "expanded channels", "expanded map"}


def test_empty_maps():
    for shape in [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)]:
        x = torch.empty(shape, device=DEVICE, requires_grad=True)
        simam(x).sum().backward()
        assert x.grad.shape == shape


def test_a_gradient_in_another_layout():
    x = torch.randn(2, 5, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = torch.autograd.grad(simam(x), x, torch.ones(2, 5, 4, 4, device=DEVICE))[0]
    for ones in (torch.ones(2, 5, 4, 4), torch.ones(1).expand(2, 5, 4, 4), torch.ones(2, 5, 4, 8)[..., ::2]):
        assert torch.equal(torch.autograd.grad(simam(x), x, ones.to(DEVICE))[0], expected)


def test_a_second_derivative_leaves_the_kernels():
    x = torch.randn(1, 2, 4, 4, device=DEVICE, requires_grad=True)
    first = torch.autograd.grad(simam(x, 0.1).pow(2).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), x)[0]
    wide = x.detach().cpu().double().requires_grad_()
    y = wide * torch.sigmoid(
        (wide - wide.mean((2, 3), keepdim=True)) ** 2 / (4 * (wide.var((2, 3), keepdim=True) + 0.1)) + 0.5
    )
    first = torch.autograd.grad(y.pow(2).sum(), wide, create_graph=True)[0]
    torch.testing.assert_close(
        second.cpu().double(), torch.autograd.grad(first.pow(2).sum(), wide)[0], rtol=1e-4, atol=1e-5
    )
