"""Eager SimAM on a CPU against float64 truth: sizes, layouts, dtypes, spreads, strides; and its derivatives."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simam_inject.attention import SimAM, cpu, gate, simam
from tests.attention.truth import TOLERANCE, assert_true, distance, plain_formula, truth

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
    y, _ = assert_true(SimAM(0.01, channel_dim=-1), x, 0.01, channel_dim=-1)
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


def test_a_hessian_is_right_in_float32():
    x = torch.randn(1, 1, 3, 3)

    def penalty(operator, t):
        t = t.detach().requires_grad_()
        (first,) = torch.autograd.grad(operator(t).pow(2).sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), t)
        return second

    assert distance(penalty(simam, x), penalty(plain_formula, x.double())) < 1e-5


MIXES = [(1.0, 1.3), (0.5, 1.0), (0.3, 1.7), (1e-3, 0.2)]


@pytest.mark.parametrize(("strength", "gain"), MIXES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 7, 7), (1, 2, 1, 1), (2, 3, 9)], ids=str)
def test_strength_and_gain(shape, dtype, layout, strength, gain):
    x = laid_out((torch.randn(shape) * 2 + 1).to(dtype), layout)
    numbers = {"strength": strength, "gain": gain}
    y, _ = assert_true(lambda t: simam(t, 0.01, **numbers), x, 0.01, **numbers)
    assert distance(y, simam(x, 0.01)) > 0.02
    module = SimAM(0.01)
    module.strength, module.gain = strength, gain
    assert torch.equal(module(x), y)
    last = simam(x.movedim(1, -1), 0.01, channel_dim=-1, **numbers).movedim(-1, 1)
    assert distance(last, y) < 1e-6 if dtype.itemsize > 2 else torch.equal(last, y)


@pytest.mark.parametrize(
    ("shape", "strength", "gain"),
    [((2, 2, 3, 4), *mix) for mix in MIXES]
    + [(shape, 1.0, 1.0) for shape in [(2, 2, 3, 4), (1, 3, 1, 1), (1, 2, 1, 2), (2, 2, 5), (1, 2, 2, 3, 2)]],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "last"])
def test_first_and_second_derivatives(shape, layout, strength, gain):
    x = laid_out(torch.randn(shape, dtype=torch.float64), layout).requires_grad_()
    operator = SimAM(0.05, channel_dim=-1 if layout == "last" else 1)
    operator.strength, operator.gain = strength, gain
    assert torch.autograd.gradcheck(operator, x)
    assert torch.autograd.gradgradcheck(operator, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", ["plain", "channels", "expanded map", "transposed"])
def test_strength_0_is_a_copy(view, dtype):
    base = torch.randn(3, 6, 9, 10).to(dtype)
    base[0, 0, 0, :3] = torch.tensor([float("inf"), float("nan"), 60000.0])
    x = STRIDED[view](base) if view != "plain" else base
    x.requires_grad_()
    y = simam(x, strength=0.0, gain=2.0)
    grad = torch.randn_like(y)
    assert y is not x
    assert torch.equal(y.nan_to_num(7), x.nan_to_num(7))
    assert y.stride() == simam(x).stride()
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], grad)
    before = x.detach().clone()
    simam(x.detach(), strength=0.0).zero_()
    assert torch.equal(x.nan_to_num(7), before.nan_to_num(7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_the_gate_alone(dtype, channel_dim):
    x = torch.randn(2, 3, 5, 4).to(dtype)
    found = gate(x, 0.1, channel_dim=channel_dim)
    wide = x.double()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.shape == x.shape
    expected = plain_formula(wide, 0.1, channel_dim=channel_dim) / wide.where(wide != 0, 1)
    assert distance(found.where(wide != 0, 0), expected) < 1e-6
    assert (found > 0.622).all()
    assert (found < 1).all()


@pytest.mark.parametrize("shape", [(8, 64, 28, 28), (4, 256, 14, 14), (8, 512, 7, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_keeps_one_copy_and_two_numbers_per_plane(shape, dtype, layout):
    x = laid_out(torch.randn(shape).to(dtype), layout).requires_grad_()
    assert bytes_kept(simam, x) <= 1.10 * x.nbytes


class Peak(TorchDispatchMode):
    """Counts the bytes of the memory that operations make, and the most that was alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if is_tensor(tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in filter(is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in inputs | self.known:
                self.known.add(storage._cdata)
                self.alive += storage.nbytes()
                self.most = max(self.most, self.alive)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return result

    def _forget(self, key, nbytes):
        self.known.discard(key)
        self.alive -= nbytes


def is_tensor(value):
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize(
    ("shape", "grad_of"),
    [
        ((1, 64, 96, 96), torch.randn_like),
        ((1, 64, 112, 112), lambda x: torch.ones(1).to(x).expand_as(x)),
        ((1, 24, 256, 256), lambda x: torch.randn(x.shape).to(x).transpose(2, 3).contiguous().transpose(2, 3)),
        ((1, 40, 256, 256), torch.randn_like),
        ((1, 2, 900, 900), torch.randn_like),
    ],
    ids=["0.6 M", "0.8 M, expanded", "1.6 M, transposed", "2.6 M", "large planes"],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_backward_of_one_large_sample_needs_little_beside_its_result(shape, grad_of, layout, dtype):
    x = laid_out(torch.randn(shape).to(dtype), layout).requires_grad_()
    grad = grad_of(x)
    y = simam(x, strength=0.9)
    with Peak() as peak:
        (dx,) = torch.autograd.grad(y, x, grad)
    assert x.nbytes <= peak.most <= 2.5 * x.nbytes
    assert distance(dx, truth(x, grad, strength=0.9)[1]) < TOLERANCE[dtype]


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
