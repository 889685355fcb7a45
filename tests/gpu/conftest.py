"""The whole package on a GPU.

    pytest -m gpu tests/gpu                          # on a machine with a CUDA device; about 100 s with -n 4
    SIMAM_TEST_DEVICE=cpu pytest -m gpu tests/gpu    # anywhere: the same tests on the CPU, without those of CUDA alone

`SIMAM_TEST_DEVICE` names the device, `cuda` by default; this file is the only place that reads it. Every result is
compared with `tests/oracle.py`, which uses hooks and the formula in float64, and with the network without SimAM: equal
to the one, and far from the other. Matrix products and convolutions are those of full float32 unless a test says so.
"""

import os

import pytest
import torch

NAME = os.environ.get("SIMAM_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session")
def device():
    """Where the tests run."""
    if NAME.startswith("cuda") and not torch.cuda.is_available():
        pytest.fail("no CUDA device is available; SIMAM_TEST_DEVICE=cpu runs these tests without one", pytrace=False)
    return torch.device(NAME)


@pytest.fixture
def cuda(device):
    """The device, of a test that has no meaning on another one."""
    if device.type != "cuda":
        pytest.skip("for CUDA alone")
    return device


@pytest.fixture(autouse=True)
def _precision():
    """Full float32, and nothing that a test has set stays."""
    settings = (torch.backends.cudnn, "allow_tf32"), (torch.backends.cudnn, "benchmark")
    before = [getattr(*place) for place in settings]
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision("highest")
    for place, value in zip(settings, before, strict=True):
        setattr(*place, value)
    if NAME.startswith("cuda") and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # other processes test on the same device
