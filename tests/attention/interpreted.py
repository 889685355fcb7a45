"""The Triton kernels against float64 truth: run by `test_kernels` with the interpreter on a CPU, or on a GPU.

Not collected by itself: the interpreter has to be chosen before Triton is imported, and would slow every other test.
"""

import pytest
import torch

from simam_inject.attention import functional, kernels, simam, tiles
from tests.attention.test_values import STRIDED, laid_out
from tests.attention.truth import TOLERANCE, assert_true, plain_formula

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = TOLERANCE | {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""The interpreter truncates to bfloat16, where a GPU rounds."""
HALVES = [torch.float16, torch.bfloat16]
LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
NEGATIVE = torch._neg_view(-torch.ones(2, 5, 4, 4).contiguous(memory_format=torch.channels_last))
"""Ones, and -1 in memory."""
SMALL_TILES = {
    "PROGRAMS": 40,
    "MOST_SUMS": 16,
    "WARP": 16,
    "STEP": 32,
    "WIDEST": 4,
    "NARROWEST": 2,
    "ROOM": 32,
    "CHANNELS_LAST_ROOM": 32,
}


@pytest.fixture(autouse=True)
def _kernels_everywhere(monkeypatch):
    monkeypatch.setattr(functional, "cpu", kernels)


@pytest.fixture
def are_whole(monkeypatch):
    """Whether planes stay on chip, for each kernel that was launched."""
    chosen = []
    if DEVICE == "cuda":
        functional.kernels_on(torch.device("cuda", 0))  # launches once, to see whether it can

    def record(*arguments):
        result = choose(*arguments)
        chosen.append(result[1]["parts"] == 0)
        return result

    choose = tiles.choose.__wrapped__  # not from the cache, since tests change what it depends on
    monkeypatch.setattr(kernels, "choose", record)
    return chosen


def check(x, e_lambda=0.01, **numbers):
    assert tiles.fits(x)
    return assert_true(
        lambda t: simam(t, e_lambda, **numbers), x.to(DEVICE), e_lambda, tolerance=LIMIT[x.dtype], **numbers
    )


def later(*case):
    return pytest.param(*case, marks=pytest.mark.long)


@LAYOUTS
@pytest.mark.parametrize("numbers", [{}, {"strength": 0.3, "gain": 1.7}], ids=["plain", "mixed"])
@pytest.mark.parametrize(
    ("shape", "dtype", "is_whole"),
    [
        ((2, 3, 1, 1), torch.float32, True),
        ((2, 33, 7, 7), torch.float32, True),
        ((2, 33, 7, 7), torch.bfloat16, True),
        ((1, 3, 9, 17), torch.float16, True),
        ((1, 3, 4, 5, 6), torch.float32, True),
        ((1, 5, 7, 9), torch.float32, False),
        ((1, 5, 7, 9), torch.bfloat16, False),
        later((2, 5, 1, 3), torch.float32, True),
        later((1, 70, 6, 6), torch.float32, True),
        later((2, 33, 7, 7), torch.float16, True),
        later((1, 3, 13, 17), torch.bfloat16, True),
        later((1, 5, 7, 9), torch.float16, False),
        later((1, 3, 13, 17), torch.float32, False),
    ],
    ids=str,
)
def test_planes_on_chip_and_too_large_for_it(shape, dtype, is_whole, layout, numbers, are_whole, monkeypatch):
    for name, value in () if is_whole else SMALL_TILES.items():
        monkeypatch.setattr(tiles, name, value)
    x = laid_out((torch.randn(shape) * 2 + 1).to(dtype), layout)
    y, dx = check(x, **numbers)
    assert y.stride() == dx.stride() == x.stride()
    assert are_whole == [is_whole] * 3


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 1, 190, 190), "contiguous"), later((1, 17, 46, 45), "channels_last")],
)
def test_real_large_planes_have_parts(shape, layout, are_whole):
    check(laid_out(torch.randn(shape), layout))
    assert are_whole == [False] * 3


@pytest.mark.parametrize("std", [1e-3, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_maps_of_any_spread_are_true(std, dtype):
    check((torch.randn(1, 2, 20, 20) * std).to(dtype), 1e-4)


@pytest.mark.parametrize("e_lambda", [1e-30, 1e30])
def test_constant_maps_and_extreme_lambdas(e_lambda):
    check(torch.full((1, 2, 3, 3), 5.0), e_lambda)


@pytest.mark.parametrize("view", STRIDED)
def test_views_are_true_or_left_to_the_composite(view):
    x = STRIDED[view](torch.randn(2, 4, 9, 10).to(DEVICE))
    if tiles.fits(x):
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
    for ones in (torch.ones(2, 5, 4, 4), torch.ones(1).expand(2, 5, 4, 4), torch.ones(2, 5, 4, 8)[..., ::2], NEGATIVE):
        assert torch.equal(torch.autograd.grad(simam(x), x, ones.to(DEVICE))[0], expected)


def test_a_second_derivative_leaves_the_kernels():
    x = torch.randn(1, 2, 4, 4, device=DEVICE, requires_grad=True)

    def second(y, x):
        first = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.pow(2).sum(), x)[0].cpu().double()

    wide = x.detach().cpu().double().requires_grad_()
    expected = second(plain_formula(wide, 0.1, 0.3, 1.7), wide)
    torch.testing.assert_close(second(simam(x, 0.1, strength=0.3, gain=1.7), x), expected, rtol=1e-4, atol=1e-5)
