"""What `simam` and `SimAM` accept, say and own."""

import copy
import io
import math
import pickle
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from simam_inject.attention import ArgumentError, SimAM, gate, simam
from simam_inject.errors import InjectError

ONES = torch.ones(1, 1, 2, 2)
OF_NO_KIND = [True, False, "1e-4", None, [1e-4], torch.tensor(1e-4), 1j, math.nan, math.inf, -math.inf, 10**400, -1]


NUMBERS = {
    "e_lambda": (r"e_lambda .* above 0, e\.g\. 1e-4 .* 0\.1 .*; found", [0, 0.0, -1e-4]),
    "strength": (r"strength .* from 0 .* to 1 \(SimAM\); found", [-1e-9, 1.0000001]),
    "gain": (r"gain .* above 0, .*; found", [0, 0.0]),
}


def run_with(name, value):
    module = SimAM()
    setattr(module, name, value)
    module(ONES)


@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name, (_, more) in NUMBERS.items() for bad in [*OF_NO_KIND, *more]], ids=str
)
def test_numbers_out_of_range_are_refused(name, bad):
    calls = [lambda: simam(ONES, **{name: bad}), lambda: run_with(name, bad)]
    if name == "e_lambda":
        calls += [lambda: SimAM(bad), lambda: gate(ONES, bad)]
    for call in calls:
        with pytest.raises(ArgumentError, match=NUMBERS[name][0]) as caught:
            call()
        assert repr(bad)[:20] in str(caught.value)


@pytest.mark.parametrize("good", [1e-4, 1, np.float32(0.5), np.float64(0.5), Fraction(1, 10)])
def test_e_lambda_may_be_any_real_number(good):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = SimAM(good)
    assert type(module.e_lambda) is float
    assert module.e_lambda == pytest.approx(float(good))
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(module(x), simam(x, float(good)))
    assert torch.equal(module(x), simam(x, good))


@pytest.mark.parametrize("count", [2, 64, np.int64(1024)])
def test_an_integer_is_taken_for_a_channel_count(count):
    with pytest.warns(UserWarning, match=rf"SimAM\(e_lambda=.*{int(count)}.*probably a channel count") as caught:
        module = SimAM(count)
    assert module.e_lambda == count
    assert caught[0].filename == __file__


@pytest.mark.parametrize("bad", [0, 2, -2, None, "last", True, 1.0, 1.5])
def test_channel_dim_is_one_or_minus_one(bad):
    for build in (lambda: SimAM(channel_dim=bad), lambda: simam(torch.ones(1, 1, 2, 2), channel_dim=bad)):
        with pytest.raises(ArgumentError, match=r"channel_dim .* 1 .* -1 .*found " + repr(bad)):
            build()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: torch.ones(3), r"3 to 5 dimensions .*found shape \(3,\)"),
        (lambda: torch.ones(2, 3), r"found shape \(2, 3\); add a batch dimension"),
        (lambda: torch.ones(1, 1, 1, 1, 1, 1), r"found shape \(1, 1, 1, 1, 1, 1\)"),
        (ONES.long, r"found torch.int64; convert it first"),
        (ONES.bool, r"found torch.bool"),
        (lambda: ONES.to(torch.float8_e4m3fn), r"found torch.float8_e4m3fn; convert it first"),
        (lambda: ONES.to(torch.complex64), r"found torch.complex64$"),
        (lambda: ONES.to(torch.int8), r"found torch.int8; .*x.float\(\)"),
        (ONES.numpy, r"torch.Tensor; found ndarray"),
        (lambda: None, r"found NoneType"),
        (lambda: torch.quantize_per_tensor(ONES, 0.1, 0, torch.quint8), r"found torch.quint8; .*x.dequantize\(\)"),
        (ONES.to_sparse, r"dense.* found layout torch.sparse_coo; .*x.to_dense\(\)"),
        (ONES.to_mkldnn, r"dense.* found layout torch._mkldnn; .*x.to_dense\(\)"),
        (lambda: torch.nested.nested_tensor([ONES[0]]), r"found a nested tensor"),
        (lambda: torch.nested.nested_tensor([ONES[0]], layout=torch.jagged), r"found a nested tensor"),
    ],
)
def test_what_is_no_dense_feature_map_is_refused(make, facts):
    for call in (simam, SimAM(), gate, lambda x: simam(x, strength=0.0)):
        with pytest.raises(ArgumentError, match=facts) as caught:
            call(make())
        assert isinstance(caught.value, InjectError)
        assert isinstance(caught.value, ValueError)
        assert "\n" not in str(caught.value)


def test_arguments_after_e_lambda_are_keywords():
    with pytest.raises(TypeError):
        SimAM(1e-4, 1)
    with pytest.raises(TypeError):
        simam(torch.ones(1, 1, 2, 2), 1e-4, 1)


def test_the_module_owns_nothing_and_says_what_it_is():
    module = SimAM()
    assert not module.state_dict()
    assert not list(module.parameters())
    assert not list(module.buffers())
    assert repr(module) == "SimAM(e_lambda=0.0001)"
    module = SimAM(0.1, channel_dim=-1)
    module.bypassed = True
    assert repr(module) == "SimAM(e_lambda=0.1, channel_dim=-1, bypassed)"
    module.strength, module.gain = 0.25, 1.3
    assert repr(module) == "SimAM(e_lambda=0.1, channel_dim=-1, strength=0.25, gain=1.3, bypassed)"
    assert not module.state_dict()


def test_bypassed_it_returns_the_very_input():
    module, x = SimAM(), torch.randn(1, 2, 3, 3)
    assert module(x) is not x
    module.bypassed = True
    assert module(x) is x
    module.bypassed = False
    assert torch.equal(module(x), simam(x))


def copies(module):
    yield "deepcopy", copy.deepcopy(module)
    yield "copy", copy.copy(module)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        yield f"pickle {protocol}", pickle.loads(pickle.dumps(module, protocol))
    with io.BytesIO() as file:
        torch.save(module, file)
        file.seek(0)
        yield "torch.load", torch.load(file, weights_only=False)
        file.seek(0)
        yield "torch.load, weights only", torch.load(file, weights_only=True)


def test_copies_keep_everything():
    module = SimAM(0.3, channel_dim=-1)
    module.strength, module.gain, module.bypassed = 0.25, 1.3, True
    for way, twin in copies(module):
        assert type(twin) is SimAM, way
        assert repr(twin) == repr(module), way


def test_it_follows_the_model_in_dtype_and_device():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), SimAM()).to(torch.bfloat16)
    assert net(torch.randn(1, 2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert net.to("meta")(torch.empty(1, 2, 4, 4, dtype=torch.bfloat16, device="meta")).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("inside", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype, inside):
    for numbers in ({}, {"gain": 1.3}, {"strength": 0.3, "gain": 1.3}, {"strength": 0.0}):
        x = torch.randn(2, 3, 5, 5).to(dtype).requires_grad_()
        with torch.autocast("cpu", inside):
            y = simam(x, **numbers)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype
        assert torch.equal(y, simam(x, **numbers))


def test_no_kernel_is_imported_for_a_cpu():
    """`torch._dynamo`, which the package imports, imports triton."""
    code = """
import sys, torch
from simam_inject.attention import simam
simam(torch.ones(1, 1, 2, 2))
print([name for name in sys.modules if name.startswith("simam_inject.attention.kernels")])
"""
    assert run_fresh(code) == "[]\n"


def run_fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_default_device_set_before_the_import_changes_nothing():
    code = """
import torch
torch.set_default_device("meta")
from simam_inject.attention import gate, simam
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for shape in [(2, 3, 4, 4), (1, 1, 740, 740)]:
        for numbers in ({}, {"gain": 1.3}, {"strength": 0.5}, {"strength": 0.0}):
            x = torch.full(shape, 2.0, dtype=dtype, device="cpu").requires_grad_()
            y = simam(x, **numbers)
            y.backward(torch.ones(shape, dtype=dtype, device="cpu"))
            print(y.device, x.grad.device, gate(x).device, x.grad.isfinite().all().item())
"""
    assert set(run_fresh(code).splitlines()) == {"cpu cpu cpu True"}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "model", [SimAM(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(SimAM()))], ids=["alone", "net"]
)
def test_scripting_says_that_tracing_is_the_way(model):
    with pytest.raises(ArgumentError, match=r"cannot be scripted: use torch\.jit\.trace\(model, example\)$"):
        torch.jit.script(model)
