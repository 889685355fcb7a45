"""Eager SimAM on a CPU against float64 truth: sizes, layouts, dtypes, spreads, strides; and its derivatives."""

import pytest
import torch

from simam_inject.attention import SimAM, simam
from simam_inject.attention import cpu
from tests.attention.truth import assert_true, distance, truth

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float64, torch.float32, *HALVES]
SHAPES = [
    (2, 3, 1, 1),
    (1, 1, 1, 2),
    (2, 5, 7, 7),
    (3, 2, 13, 17),
    (1, 33, 14, 14),
    (2, 3, 9),
    (2, 4, 3, 5, 4),
    (1, 4, 1, 1, 1),
]


def laid_out(x, layout):
    if layout == "channels_last":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x
    return x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_are_true(shape, dtype, layout):
    x = laid_out((torch.randn(shape) * 2 + 1).to(dtype), layout)
    y, dx = assert_true(lambda t: simam(t, 0.01), x, 0.01)
    assert y.stride() == dx.stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 5, 3), (2, 9, 4), (1, 3, 4, 5, 2), (2, 1, 1, 3)], ids=str)
def test_channels_may_come_last(shape, dtype):
    x = torch.randn(shape).to(dtype)
    y, _ = assert_true(SimAM(0.01, channel_dim=-1), x, 0.01, -1)
    assert y.stride() == x.stride()
    assert torch.equal(y, simam(x.movedim(-1, 1), 0.01).movedim(1, -1))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("std", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("side", [80, 320])
def test_large_maps_of_any_spread_neither_overflow_nor_drift(side, std, dtype, layout):
    x = laid_out((torch.randn(1, 3, side, side) * std).to(dtype), layout)
    assert_true(simam, x)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_mean_far_from_zero_costs_no_accuracy(dtype):
    x = (torch.randn(2, 4, 56, 56) + 100).to(dtype)
    assert_true(simam, x, tolerance={torch.float32: 1e-5}.get(dtype))  # the mean itself is known to 4e-6


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("e_lambda", [1e-30, 5e-324, 1e-4, 1e5, 1e308])
def test_constant_maps_are_scaled_by_the_smallest_gate(e_lambda, dtype):
    x = torch.full((2, 3, 4, 4), 3.0, dtype=dtype, requires_grad=True)
    y = simam(x, e_lambda)
    y.sum().backward()
    half = torch.tensor(0.5).sigmoid()
    torch.testing.assert_close(y, (x * half).to(dtype))
    torch.testing.assert_close(x.grad, half.to(dtype).expand_as(x))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_maps_stay_empty(shape, layout):
    x = laid_out(torch.empty(shape), layout).requires_grad_()
    y = simam(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


STRIDED = {
    "channels": lambda x: x[:, 1::2],
    "rows": lambda x: x[:, :, 2:7],
    "columns": lambda x: x[..., ::2],
    "batch": lambda x: x[1:],
    "transposed": lambda x: x.transpose(2, 3),
    "permuted": lambda x: x.permute(0, 3, 1, 2),
    "batch and channels swapped": lambda x: x.transpose(0, 1),
    "expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "expanded channels": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "expanded map": lambda x: x[..., :1, :1].expand(-1, -1, 3, 4),
    "flipped": lambda x: x.flip(3),
}


@pytest.mark.parametrize("view", STRIDED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_views_are_attended_where_they_lie(view, dtype):
    base = torch.randn(3, 6, 9, 10).to(dtype)
    untouched = base.clone()
    assert_true(lambda t: simam(t, 0.01), STRIDED[view](base), 0.01)
    assert torch.equal(base, untouched)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 6, 7), (1, 7, 8, 8), (3, 4, 2, 3, 5)], ids=str)
def test_pieces_join_seamlessly(shape, dtype, layout, monkeypatch):
    monkeypatch.setattr(cpu, "FORWARD_PIECE", 150)
    monkeypatch.setattr(cpu, "BACKWARD_PIECE", 100)
    assert_true(simam, laid_out(torch.randn(shape).to(dtype), layout))


def test_a_gradient_in_another_layout_is_taken():
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    for grad in (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 1, 1).expand(2, 4, 6, 6)):
        (dx,) = torch.autograd.grad(simam(x), x, grad)
        assert distance(dx, truth(x, grad)[1]) < 1e-6


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (1, 3, 1, 1), (1, 2, 1, 2), (2, 2, 5), (1, 2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "last"])
def test_first_and_second_derivatives(shape, layout):
    x = laid_out(torch.randn(shape, dtype=torch.float64), layout).requires_grad_()
    operator = SimAM(0.05, channel_dim=-1 if layout == "last" else 1)
    assert torch.autograd.gradcheck(operator, x)
    assert torch.autograd.gradgradcheck(operator, x)


def test_a_hessian_is_right_in_float32():
    x = torch.randn(1, 1, 3, 3)

    def penalty(operator, t):
        t = t.detach().requires_grad_()
        (first,) = torch.autograd.grad(operator(t).pow(2).sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), t)
        return second

    def plain(t):
        d = t - t.mean((2, 3), keepdim=True)
        v = d.pow(2).sum((2, 3), keepdim=True) / 8
        return t * torch.sigmoid(d.pow(2) / (4 * (v + 1e-4)) + 0.5)

    assert distance(penalty(simam, x), penalty(plain, x.double())) < 1e-5


@pytest.mark.parametrize("shape", [(8, 64, 28, 28), (4, 256, 14, 14), (8, 512, 7, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_keeps_one_copy_and_two_numbers_per_plane(shape, dtype, layout):
    x = laid_out(torch.randn(shape).to(dtype), layout).requires_grad_()
    assert bytes_kept(simam, x) <= 1.10 * x.nbytes


def bytes_kept(operator, x):
    """Bytes of the distinct memory that `operator(x)` keeps for its backward."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        operator(x)
    assert storages
    return sum(storages.values())


def test_nothing_is_kept_without_gradients():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert simam(x).grad_fn is None
    assert simam(x.detach()).grad_fn is None
    with torch.inference_mode():
        assert simam(x).is_inference()


def test_the_input_is_guarded_against_writes_before_the_backward():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    inner = x * 1
    y = simam(inner)
    inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
