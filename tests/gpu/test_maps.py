"""The operator on maps of every shape, on streams, under transforms, and on maps beyond 32-bit offsets."""

import pytest
import torch

from simam_inject import simam
from simam_inject.attention import functional, gate
from tests.attention.truth import TOLERANCE, assert_true, distance, plain_formula, truth
from tests.gpu.networks import LAMBDA, SMALL, SMALL_PLACES, assert_attends, assert_pair, small, stock_of
from tests.oracle import attend

pytestmark = pytest.mark.gpu

SHAPES = [
    (1, 1, 1, 1), (4, 64, 1, 1), (1, 3, 7, 7), (3, 5, 13, 17), (2, 3, 1, 9), (1, 2048, 7, 7), (8, 64, 56, 56),
    (1, 64, 160, 160), (1, 1, 1000, 1000), (2, 7, 31), (1, 3, 100000), (2, 3, 5, 6, 7), (1, 16, 33, 34, 35),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_shapes(device, dtype, channels_last):
    for shape in SHAPES:
        x = (torch.randn(shape) * 2 + 1).to(device, dtype)
        if channels_last and x.dim() > 3:
            x = x.to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
        for numbers in ({}, {"strength": 0.3, "gain": 0.9}):
            y, dx = assert_true(
                lambda t, n=numbers: simam(t, 0.05, **n), x, 0.05, tolerance=2 * TOLERANCE[dtype], **numbers
            )
            if min(shape) > 1:  # the stride of a single entry means nothing
                assert y.stride() == dx.stride() == x.stride()
            assert distance(y, x) > 0.05


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_the_channels_in_either_dimension(device, channel_dim):
    x = torch.randn(2, 9, 10, 12, device=device)
    assert_true(lambda t: simam(t, 0.1, channel_dim=channel_dim), x, 0.1, channel_dim=channel_dim, tolerance=2e-6)
    torch.testing.assert_close(
        gate(x, 0.1, channel_dim=channel_dim) * x, attend(x, 0.1, channel_dim), rtol=1e-5, atol=1e-6
    )


def test_the_kernels_serve_eager_mode(cuda):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(2, 3, 8, 8, device=cuda, dtype=dtype)
        assert functional.implementation_for(x).__name__.endswith("kernels")


def test_views_with_any_strides_and_offsets(device):
    whole = torch.randn(3, 9, 12, 13, device=device)
    views = [
        whole[1:], whole[:, 1:], whole[:, ::2], whole[..., 1:], whole[..., 1:, 2:-1], whole[..., ::2],
        whole.transpose(2, 3), whole.permute(0, 2, 1, 3), whole[:1].expand(2, -1, -1, -1), whole.flip(3),
        whole.flatten()[1:3001].view(1, 3, 10, 100),
    ]  # fmt: skip
    for view in views:
        assert_true(lambda t: simam(t, 0.1), view, 0.1, tolerance=2e-6)


def test_empty_maps(device):
    for shape in [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)]:
        x = torch.empty(shape, device=device, requires_grad=True)
        simam(x).sum().backward()
        assert x.grad.shape == shape


def test_an_injected_network_on_other_batches_and_sizes(device):
    model = small().to(device)
    stock = stock_of(model)
    inject_it(model, device)
    for shape in [(1, 3, 32, 32), (3, 3, 17, 23), (2, 3, 65, 64), (64, 3, 32, 32)]:
        assert_attends(model, stock, SMALL_PLACES, torch.randn(shape, device=device))
    assert model(torch.empty(0, 3, 32, 32, device=device)).shape == (0, 5)
    with torch.inference_mode():
        assert_attends(model, stock, SMALL_PLACES, torch.randn(2, 3, 32, 32, device=device))


def inject_it(model, device):
    from simam_inject import inject

    return inject(model, SMALL, example_inputs=torch.zeros(1, 3, 32, 32, device=device), verify=False, e_lambda=LAMBDA)


def test_on_another_stream(cuda):
    """A map that the stream is still computing, and a backward there."""
    model = small().to(cuda)
    stock = stock_of(model)
    inject_it(model, cuda)
    x, stream = torch.randn(4, 3, 64, 64, device=cuda), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late = (x * 2).requires_grad_()
        y = model(late)
        y.sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    assert_attends(lambda _: y.detach(), stock, SMALL_PLACES, late.detach())
    expected = late.detach().requires_grad_()
    model(expected).sum().backward()
    torch.testing.assert_close(late.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_function_transforms(device):
    x = torch.randn(3, 2, 4, 5, 6, device=device)

    def total(t):
        return simam(t, 0.1).square().sum()

    one = torch.func.vmap(lambda t: simam(t, 0.1))(x)
    assert distance(one, torch.stack([attend(t, 0.1) for t in x])) < 2e-6
    found = torch.func.vmap(torch.func.grad(total))(x)
    wide = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(sum(plain_formula(t, 0.1).square().sum() for t in wide), wide)
    assert_pair(found, expected, 2 * wide.detach(), 1e-5)
    _, tangent = torch.func.jvp(lambda t: simam(t, 0.1), (x[0],), (torch.ones_like(x[0]),))
    _, wanted = torch.func.jvp(lambda t: plain_formula(t, 0.1), (x[0].double(),), (torch.ones_like(x[0]).double(),))
    assert distance(tangent, wanted) < 1e-5


def test_a_batch_of_gradients(device):
    x = torch.randn(2, 3, 4, 4, device=device, requires_grad=True)
    grads = torch.randn(5, *x.shape, device=device)
    (found,) = torch.autograd.grad(simam(x, 0.1), x, grads, is_grads_batched=True)
    assert distance(found, torch.stack([truth(x, grad, 0.1)[1] for grad in grads])) < 2e-6


def test_extreme_values(device):
    for dtype, size in ((torch.float16, 6e4), (torch.bfloat16, 1e15), (torch.float32, 1e15)):
        x = torch.randn(2, 3, 16, 16, device=device).clamp(-1, 1).mul(size).to(dtype)
        y = simam(x)
        assert torch.isfinite(y).all()
        assert distance(y, truth(x, x)[0]) < 2 * TOLERANCE[dtype]
    constant = torch.full((1, 2, 9, 9), 5.0, device=device)
    assert distance(simam(constant), attend(constant, 1e-4)) < 1e-6


@pytest.mark.parametrize(
    ("shape", "trains"),
    [
        ((5, 64, 2600, 2600), True),  # each sample within 32-bit offsets, all of them beyond: the kernels
        ((1, 64, 6000, 6000), False),  # one sample beyond: the composite
    ],
    ids=str,
)
def test_maps_of_more_than_two_billion_elements(cuda, shape, trains):
    count = torch.Size(shape).numel()
    assert count > 2**31
    needed = (5 if trains else 12) * 2 * count
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of memory")
    x = torch.randn(shape, device=cuda, dtype=torch.float16).mul_(2).add_(1).requires_grad_(trains)
    y = simam(x, LAMBDA)
    dx = torch.autograd.grad(y, x, torch.ones_like(y))[0] if trains else None
    for sample, channel in [(0, 0), (0, 63), (shape[0] - 1, 0), (shape[0] - 1, 63), (shape[0] // 2, 31)]:
        part = slice(sample, sample + 1), slice(channel, channel + 1)
        given = x.detach()[part]
        value, gradient = truth(given, torch.ones_like(given), LAMBDA)
        assert distance(y.detach()[part], value) < 2 * TOLERANCE[torch.float16]
        assert distance(given, value) > 0.1
        if dx is not None:
            assert distance(dx[part], gradient) < 2 * TOLERANCE[torch.float16]
