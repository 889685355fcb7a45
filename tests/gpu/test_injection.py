"""Injection into models on the GPU: as on the CPU, in every dtype and memory format, and it leaves nothing behind."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from simam_inject import bypass, eject, inject, injected, plan, verify
from simam_inject.errors import ModelError
from tests.gpu.networks import CASES, LAMBDA, LIMITS, TF32, assert_attends, assert_pair, make, outputs_of, stock_of
from tests.oracle import same_bits

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", CASES)
def test_a_model_on_the_device_is_planned_injected_verified_and_ejected(name, device):
    model, recipe, places, x = make(name)
    model, x = model.to(device), x.to(device)
    stock = stock_of(model)
    before = model(x).detach()
    planned = plan(model, recipe, example_inputs=x)
    assert len(planned.insertions) == len(places)
    inject(model, recipe, example_inputs=x, e_lambda=LAMBDA)
    assert len(injected(model)) == len(places)
    found = verify(model, example_inputs=x)
    assert found.ok
    assert {check.ok for check in found.checks} == {True}, found
    assert_attends(model, stock, places, x)
    with bypass(model), torch.no_grad():
        assert same_bits(model(x), before) or name == "decoder"
    torch.testing.assert_close(eject(model)(x), before)
    assert {parameter.device.type for parameter in model.parameters()} == {device.type}


@pytest.mark.parametrize("is_tuned", [False, True])
def test_transposed_convolutions_are_verified_whatever_algorithm_is_chosen(is_tuned, device):
    model, recipe, places, _ = make("decoder")
    x = torch.randn(4, 3, 96, 96, device=device)
    model.to(device)
    stock = stock_of(model)
    torch.backends.cudnn.benchmark = is_tuned
    inject(model, recipe, example_inputs=x, e_lambda=LAMBDA)
    for _ in range(5):
        assert verify(model, example_inputs=x).ok
    assert torch.backends.cudnn.benchmark is is_tuned
    assert not torch.backends.cudnn.deterministic
    assert_attends(model, stock, places, x)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16"])
def test_dtypes_and_memory_formats(precision, channels_last, device):
    model, recipe, places, x = make()
    dtype = getattr(torch, "float32" if precision == "tf32" else precision)
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    form = torch.channels_last if channels_last else torch.contiguous_format
    model, x = model.to(device, dtype, memory_format=form), x.to(device, dtype, memory_format=form)
    stock = stock_of(model)
    inject(model, recipe, example_inputs=x, e_lambda=LAMBDA)
    assert_attends(model, stock, places, x, limit=TF32 if precision == "tf32" else LIMITS[dtype])


def test_the_default_example_is_on_the_device_of_the_model(device):
    model, recipe, places, x = make()
    stock = stock_of(model.to(device))
    inject(model, recipe, e_lambda=LAMBDA)
    assert verify(model).ok
    assert_attends(model, stock, places, x.to(device))


def test_the_device_with_its_index(cuda):
    named = torch.device("cuda", 0)
    model, recipe, places, x = make()
    stock = stock_of(model.to(named))
    inject(model, recipe, example_inputs=x.to(named), e_lambda=LAMBDA)
    assert_attends(model, stock, places, x.to(named))


def test_the_default_device_may_be_any(device):
    model, recipe, places, x = make()
    model, x = model.to(device), x.to(device)
    stock = stock_of(model)
    with device:
        inject(model, recipe, e_lambda=LAMBDA)
        assert verify(model).ok
        assert_attends(model, stock, places, x)
    model, _, _, _ = make()
    with device:
        inject(model, recipe, example_inputs=x.cpu())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_an_example_on_another_device_is_refused_and_the_model_unchanged(cuda):
    model, recipe, _, x = make()
    model.to(cuda)
    before = model(x.to(cuda)).detach()
    with pytest.raises(ModelError, match=r"cannot be run on the example.*cuda"):
        inject(model, recipe, example_inputs=x)
    assert not injected(model)
    assert same_bits(model(x.to(cuda)), before)


class Dropping(nn.Module):
    """Draws random numbers on its device in every forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return nn.functional.dropout(self.b(self.a(x)), 0.5, training=True)


def test_random_states_stay(device):
    model, x = Dropping().to(device), torch.randn(2, 3, 16, 16, device=device)

    def drawn():
        return torch.rand(8), torch.rand(8, device=device)

    torch.manual_seed(9)
    expected = drawn()
    for act in (
        lambda: plan(model, "after dropping.a", example_inputs=x),
        lambda: inject(model, "after dropping.a", example_inputs=x),
        lambda: verify(model, example_inputs=x),
        lambda: eject(model),
    ):
        torch.manual_seed(9)
        act()
        assert same_bits(drawn(), expected)


DRAW = """
import torch
from tests.gpu.networks import make
from simam_inject import inject
model, recipe, _, x = make()
torch.manual_seed(77)
{act}
device = torch.device({device!r})
print("FOUND", torch.rand(4, device=device).tolist())
"""


def test_a_seed_from_before_the_first_use_of_the_gpu_counts(device):
    """The usual script: seed, build and inject on the CPU, then move to the GPU."""
    found = []
    for act in ("", "inject(model, recipe, example_inputs=x)"):
        code = DRAW.format(act=act, device=str(device))
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "FOUND" in done.stdout, done.stderr
        found.append(done.stdout.partition("FOUND")[2])
    assert found[0] == found[1]


def test_no_memory_stays_on_the_gpu(cuda):
    def use(model, x):
        plan(model, recipe, example_inputs=x)
        inject(model, recipe, example_inputs=x)
        verify(model, example_inputs=x)
        eject(model)

    first, recipe, _, x = make()
    x = x.to(cuda)
    use(first.to(cuda), x)  # with it the workspaces of libraries, which stay
    del first
    model = make()[0].to(cuda)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for act in (
        lambda: plan(model, recipe, example_inputs=x),
        lambda: inject(model, recipe, example_inputs=x),
        lambda: verify(model),
        lambda: eject(model),
    ):
        act()
        gc.collect()
        assert torch.cuda.memory_allocated() == before


def test_a_forward_and_a_backward_never_wait_for_the_gpu(cuda):
    model, recipe, _, x = make()
    model, x = inject(model, recipe, example_inputs=x, verify=False).to(cuda), x.to(cuda)
    model(x).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_under_autocast_and_inference_mode(device):
    for context in (torch.autocast(device.type, torch.bfloat16), torch.inference_mode()):
        model, recipe, places, x = make()
        model, x = model.to(device), x.to(device)
        stock = stock_of(model)
        with context:
            inject(model, recipe, example_inputs=x, e_lambda=LAMBDA)
            assert verify(model, example_inputs=x).ok
            found, expected = model(x), outputs_of(stock, places, x)
        assert_pair(found.clone(), *expected, LIMITS[torch.bfloat16])
