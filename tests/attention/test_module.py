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

from simam_inject.attention import ArgumentError, SimAM, simam
from simam_inject.errors import InjectError


@pytest.mark.parametrize("bad", [0, 0.0, -1, -1e-4, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("build", [SimAM, lambda value: simam(torch.ones(1, 1, 2, 2), value)])
def test_e_lambda_out_of_range_is_refused_with_the_usual_values(build, bad):
    with pytest.raises(
        ArgumentError, match=r"e_lambda must be finite and above 0, e\.g\. 1e-4 .* or 0\.1 .*found " + str(bad)
    ):
        build(bad)


@pytest.mark.parametrize("bad", [True, False, "1e-4", None, [1e-4], torch.tensor(1e-4), 1j])
@pytest.mark.parametrize("build", [SimAM, lambda value: simam(torch.ones(1, 1, 2, 2), value)])
def test_e_lambda_of_another_kind_is_refused(build, bad):
    with pytest.raises(ArgumentError, match=r"e_lambda must be a number above 0.*found .*" + type(bad).__name__):
        build(bad)


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
        with pytest.raises(ArgumentError, match=r"channel_dim must be 1 \(N, C, spatial\) or -1 .*found " + repr(bad)):
            build()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.ones(3), r"3 to 5 dimensions .*found shape \(3,\)"),
        (torch.ones(2, 3), r"found shape \(2, 3\); add a batch dimension"),
        (torch.ones(1, 1, 1, 1, 1, 1), r"found shape \(1, 1, 1, 1, 1, 1\)"),
        (torch.ones(1, 1, 2, 2, dtype=torch.int64), r"found torch.int64; convert it first"),
        (torch.ones(1, 1, 2, 2, dtype=torch.bool), r"found torch.bool"),
        (torch.ones(1, 1, 2, 2).to(torch.float8_e4m3fn), r"found torch.float8_e4m3fn; convert it first"),
        (torch.ones(1, 1, 2, 2, dtype=torch.complex64), r"found torch.complex64$"),
        (np.ones((1, 1, 2, 2)), r"attends a torch.Tensor; found ndarray"),
        (None, r"found NoneType"),
    ],
)
def test_what_is_no_feature_map_is_refused(bad, says):
    with pytest.raises(ArgumentError, match=says) as caught:
        simam(bad)
    assert isinstance(caught.value, InjectError)
    assert isinstance(caught.value, ValueError)


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
        torch.serialization.add_safe_globals([SimAM])  # the context manager would take away what the engine added
        yield "torch.load, weights only", torch.load(file, weights_only=True)


def test_copies_keep_everything():
    module = SimAM(0.3, channel_dim=-1)
    module.bypassed = True
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
    x = torch.randn(2, 3, 5, 5).to(dtype).requires_grad_()
    with torch.autocast("cpu", inside):
        y = simam(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y, simam(x))


def test_nothing_heavy_is_imported_for_a_cpu():
    code = """
import sys, torch
from simam_inject.attention import simam
simam(torch.ones(1, 1, 2, 2))
print([name for name in sys.modules if name == "triton" or name.startswith("simam_inject.attention.kernels")])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_lambda_too_large_for_a_float_is_refused():
    with pytest.raises(ArgumentError, match="e_lambda must be finite and above 0"):
        simam(torch.ones(1, 1, 2, 2), 10**400)
