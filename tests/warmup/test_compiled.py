"""A ramp under `torch.compile`: few compilations, the values of eager mode, and the plain network at strength 0."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from simam_inject import inject, injected
from simam_inject.warmup import Ramp, calibrate, set_strength
from tests.warmup.networks import backward, calibrated, images, plain

pytestmark = pytest.mark.usefixtures("fresh_compiler")


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
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_at_strength_0_a_compiled_model_is_the_plain_one_bit_for_bit(backend, training):
    x = images()
    model, stock = calibrated().train(training), plain().train(training)
    live = copy.deepcopy(model)(x)
    set_strength(model, 0.0)
    ours, theirs = (backward(net, x, torch.compile(net, backend=backend)) for net in (model, stock))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (live - ours[0]).abs().max() > 1e-3


class CallsCompiled(nn.Module):
    """A part of its forward is compiled, and runs the attended children."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in "ab")

    def forward(self, x):
        return PART[0](self, x) * 2


def part(net, x):
    return net.b(net.a(x).relu())


PART = [part]


@pytest.mark.skipif(not hasattr(torch._dynamo.eval_frame, "_use_eager_on_nested_compile"), reason="needs torch 2.14")
def test_a_forward_that_calls_compiled_functions_is_calibrated_as_it_is_written(recwarn, monkeypatch):
    model = inject(CallsCompiled(), {"rules": [{"pattern": "conv2d"}]}, example_inputs=images(2))
    twin, found = copy.deepcopy(model), []
    for each in (model, twin):
        found.append(calibrate(each, [images(2)]))
        monkeypatch.setitem(globals(), "PART", [torch.compile(part, backend="eager", fullgraph=True)])
    assert [site.gain for site in injected(model)] == [site.gain for site in injected(twin)]
    assert str(found[0]) == str(found[1])
    assert not [one for one in recwarn if "recompile" in str(one.message)]
