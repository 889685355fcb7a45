"""The Triton kernel of a chain, run by Triton's interpreter on the CPU against float64."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("triton", reason="Triton is not installed on this platform")

PROGRAM = """
import itertools, torch, torch.nn.functional as F
from simam_inject.attention.chained import Chain
from simam_inject.attention.kernels import chained

ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
generator = torch.Generator().manual_seed(0)

def attended(x, e_lambda):
    d = x - x.mean((2, 3), keepdim=True)
    n = max(x.shape[2] * x.shape[3] - 1, 1)
    v = d.square().sum((2, 3), keepdim=True) / n
    return x * torch.sigmoid(d.square() / (4 * (v + e_lambda)) + 0.5)

cases = 0
shapes = [(2, 5, 7, 9), (1, 33, 1, 1), (2, 3, 16, 16)]
for shape, layout, norm_first, with_residual, activation in itertools.product(
    shapes, ("nchw", "nhwc"), (True, False), (True, False), ACTIVATIONS
):
    x = torch.randn(shape, generator=generator) * 3 + 1
    residual = torch.randn(shape, generator=generator) if with_residual else None
    if layout == "nhwc":
        x = x.contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(shape[1], generator=generator), torch.randn(shape[1], generator=generator)
    assert chained.fits(x), (shape, layout)
    y = chained.forward(x, 1e-4, Chain(scale, shift, norm_first, residual, activation))
    s, t = scale.double().view(1, -1, 1, 1), shift.double().view(1, -1, 1, 1)
    truth = attended(x.double() * s + t, 1e-4) if norm_first else attended(x.double(), 1e-4) * s + t
    if residual is not None:
        truth = truth + residual
    truth = ACTIVATIONS[activation](truth)
    error = (y.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-3)
    assert error < 1e-5, (shape, layout, norm_first, with_residual, activation, float(error))
    assert y.stride() == x.stride()
    cases += 1
half = torch.randn(2, 4, 6, 6, generator=generator).half()
one, zero = torch.ones(4), torch.zeros(4)
y = chained.forward(half, 1e-4, Chain(one, zero, False, None, None))
assert y.dtype == torch.float16
assert (y.double() - attended(half.double(), 1e-4)).abs().max() < 2e-3
print(cases)
"""


def test_every_chain_on_every_layout():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip() == "120"
