"""torch.compile and CUDA graphs: few and small, since each compilation takes seconds."""

import pytest
import torch
from torch import nn

from simam_inject import bypass, inject, set_strength, simam
from tests.attention.truth import truth
from tests.gpu.networks import LAMBDA, LIMITS, SMALL, SMALL_PLACES, assert_pair, gradients, outputs_of, small, stock_of
from tests.oracle import attend, distance, hooked

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("fresh_compiler")]
NEAR = 1e-4
"""Compiled convolutions may have another memory format, and with it another algorithm."""


def batch(device, count=4, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side)).to(device)


@pytest.fixture
def pair(device):
    """An injected network on the device, and the stock one."""
    model = small().to(device)
    stock = stock_of(model)
    return inject(model, SMALL, example_inputs=batch(device), verify=False, e_lambda=LAMBDA), stock


def of_strength(strength):
    return lambda x, e_lambda, channel_dim=1: attend(x, e_lambda, channel_dim, strength)


def loss_of(output):
    return nn.functional.cross_entropy(output.float(), torch.arange(len(output), device=output.device) % 5)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_evaluation_and_what_is_changed_after_the_compilation(pair, device, mode):
    model, stock = pair
    compiled, x = torch.compile(model, fullgraph=True, mode=mode), batch(device)
    with torch.no_grad():
        for strength in (1.0, 1.0, 1.0, 0.5, 0.25, 0.0):  # the third call replays what the second has captured
            set_strength(model, strength)
            expected, plain = outputs_of(stock, SMALL_PLACES, x, operator=of_strength(strength))
            if strength:
                assert_pair(compiled(x).clone(), expected, plain, NEAR)
        assert distance(compiled(x), plain) < NEAR
        set_strength(model, 1.0)
        with bypass(model):
            assert distance(compiled(x), plain) < NEAR
        x = batch(device, side=32) * 2
        assert_pair(compiled(x).clone(), *outputs_of(stock, SMALL_PLACES, x), NEAR)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_training(pair, device, mode):
    """Three steps, so that a captured graph runs on weights that have changed."""
    model, stock = pair
    plain = stock_of(stock)
    compiled, found = torch.compile(model.train(), fullgraph=True, mode=mode), []
    for step in range(3):
        x = batch(device, side=32) + step
        found = []
        for run, one, places in (
            (compiled, model, ()),
            (stock, stock.train(), SMALL_PLACES),
            (plain, plain.train(), ()),
        ):
            torch.compiler.cudagraph_mark_step_begin()
            with hooked(one, places, LAMBDA):
                found.append(gradients(one, loss_of(run(x))))
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter.mul_(0.99)
        assert_pair(*found, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_training_in_mixed_precision(pair, device, dtype):
    model, stock = pair
    compiled, x, found = torch.compile(model.train(), fullgraph=True), batch(device), []
    for run, one, places in ((compiled, model, ()), (stock, stock.train(), SMALL_PLACES), (stock, stock, ())):
        with hooked(one, places, LAMBDA), torch.autocast(device.type, dtype):
            loss = loss_of(run(x))
        found.append(gradients(one, loss))
    assert_pair(*found, 0.06)  # a compiled network rounds at other places


def test_dynamic_sizes(pair, device):
    model, stock = pair
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for count, side in ((4, 32), (2, 48), (3, 33), (5, 64)):
            x = batch(device, count, side)
            assert_pair(compiled(x), *outputs_of(stock, SMALL_PLACES, x), NEAR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_alone_in_channels_last_memory(device, dtype):
    x = torch.randn(2, 16, 14, 15, device=device).to(dtype, memory_format=torch.channels_last).requires_grad_()
    y = torch.compile(lambda t: simam(t, 0.1, strength=0.7, gain=0.9), fullgraph=True)(x)
    grad = torch.randn_like(x)
    (dx,) = torch.autograd.grad(y, x, grad)
    expected = truth(x, grad, 0.1, strength=0.7, gain=0.9)
    assert y.stride() == dx.stride() == x.stride()
    for found, right, plain in zip((y, dx), expected, (x.detach(), grad), strict=True):
        assert_pair(found, right, plain, LIMITS[dtype] / 2)


# CUDA graphs that are captured by hand, without a compiler


def warmed_up(function):
    """Run it three times on a stream of its own, as a capture demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def test_a_captured_forward(pair, cuda):
    model, stock = pair
    static = batch(cuda)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        warmed_up(lambda: model(static))
        with torch.cuda.graph(graph):
            y = model(static)
        for seed in range(2):
            x = batch(cuda) * (1 + seed) + seed
            static.copy_(x)
            graph.replay()
            assert_pair(y.clone(), *outputs_of(stock, SMALL_PLACES, x), NEAR)


def test_a_captured_step(pair, cuda):
    model, stock = pair
    model.train(), stock.train()
    static, plain = batch(cuda), stock_of(stock)
    parameters = list(model.parameters())

    def step():
        loss = nn.functional.cross_entropy(model(static), labels)
        return torch.autograd.grad(loss, parameters)

    labels = torch.arange(len(static), device=cuda) % 5
    warmed_up(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient = step()
    x = batch(cuda) * 2
    static.copy_(x)
    graph.replay()
    found = torch.cat([part.double().flatten() for part in gradient])
    with hooked(stock, SMALL_PLACES, LAMBDA):
        expected = gradients(stock, loss_of(stock(x)))
    assert_pair(found, expected, gradients(plain, loss_of(plain(x))), 1e-3)


def test_graphed_callables(pair, cuda):
    """torch takes no module with hooks of its own, as the root of an injected network has, so another is around it."""
    model, stock = pair
    x, plain = batch(cuda), stock_of(stock)
    wrapped = nn.Sequential(model.train())
    graphed = torch.cuda.make_graphed_callables(wrapped, (x.clone(),))
    found = []
    for run, one, places in ((graphed, model, ()), (stock, stock.train(), SMALL_PLACES), (plain, plain.train(), ())):
        with hooked(one, places, LAMBDA):
            found.append(gradients(one, loss_of(run(x))))
    assert_pair(*found, 1e-3)
