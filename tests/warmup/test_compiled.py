"""A ramp under `torch.compile`: few compilations, the values of eager mode, and the plain network at strength 0."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from simam_inject.warmup import Ramp, calibrate, set_strength
from tests.warmup.networks import attended, images, plain


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def calibrated():
    model = attended()
    calibrate(model, images(), norms=False)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_a_ramp_of_100_values_compiles_a_graph_at_most_4_times(training):
    model = calibrated().train(training)
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    ramp = Ramp(model, eager, steps=100)
    x, outputs = images(2), []
    for _ in range(100):
        ramp.step()
        output = compiled(x)
        if training:
            output.sum().backward()
        torch.testing.assert_close(output, eager(x), rtol=1e-4, atol=1e-5)
        outputs.append(output.detach())
    assert counter.frame_count <= 4
    assert (outputs[0] - outputs[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_at_strength_0_a_compiled_model_is_the_plain_one_bit_for_bit(training):
    check_plain("aot_eager", training)


@pytest.mark.long
@pytest.mark.parametrize("training", [False, True])
def test_at_strength_0_inductor_gives_the_plain_model(training):
    check_plain("inductor", training)


def check_plain(backend, training):
    x = images()
    model, stock = calibrated().train(training), plain().train(training)
    live = copy.deepcopy(model)(x)
    set_strength(model, 0.0)
    one, other = (torch.compile(net, backend=backend)(x) for net in (model, stock))
    assert torch.equal(one, other)
    if training:
        for net, output in ((model, one), (stock, other)):
            net.zero_grad()
            output.square().sum().backward()
        for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
        for ours, theirs in zip(model.buffers(), stock.buffers(), strict=True):
            assert torch.equal(ours, theirs)
    assert (live - one).abs().max() > 1e-3
