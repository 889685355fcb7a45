"""The Triton kernels: run under the interpreter, compiled for a GPU that is not there, cut into tiles, done without."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from simam_inject.attention import composite, dispatch, simam

triton = pytest.importorskip("triton")

from simam_inject.attention import kernels, tiling  # noqa: E402  # needs triton

HERE = Path(__file__).parent


def run_interpreted(*selection, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
    command.append(str(HERE / "interpreted.py"))
    result = subprocess.run(
        command, cwd=HERE.parents[1], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= 20


def test_kernels_are_true_under_the_interpreter():
    run_interpreted(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.long
def test_more_shapes_are_true_under_the_interpreter():
    run_interpreted("-m", "long", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
def test_kernels_are_true_on_a_gpu():
    run_interpreted("-m", "long or not long")


CONTIGUOUS, CHANNELS_LAST = (64 * 4096, 4096, 1), (64 * 4096, 1, 64)


def compiled(kernel, strides, constants):
    """PTX of `kernel` for an H100, for bfloat16 tensors of these strides. No device is needed."""
    signature, given, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            signature[name] = "*fp32" if name in {"mean_ptr", "a_ptr"} else "*bf16"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif name.endswith("_strides"):
            signature[name] = tuple("constexpr" if stride == 1 else "i32" for stride in strides)
            for place, stride in enumerate(strides):
                if stride == 1:
                    given[(index, place)] = 1
                else:
                    attributes[(index, place)] = [["tt.divisibility", 16]]
        elif name in constants:
            signature[name] = "constexpr"
            given[(index,)] = constants[name]
        elif name in {"e_lambda", "keep", "scale"}:
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, given, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    warps = tiling.Tiling(constants["planes"], constants["span"], True, 1).warps
    return triton.compile(source, target=target, options={"num_warps": warps}).asm["ptx"]


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "walked"])
@pytest.mark.parametrize(("strides", "planes", "span"), [(CONTIGUOUS, 1, 4096), (CHANNELS_LAST, 32, 64)])
@pytest.mark.parametrize("kernel", [kernels._forward, kernels._backward], ids=["forward", "backward"])
def test_kernels_compile_with_wide_loads_and_no_spills(kernel, strides, planes, span, is_whole, tmp_path, monkeypatch):
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this triton cannot compile for NVIDIA")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(kernel, strides, {"saves": True, "is_whole": is_whole, "planes": planes, "span": span})
    loads = re.findall(r"ld\.global\S*", code)
    assert any(".v4.b32" in load for load in loads)
    assert not any(load.endswith(".b16") for load in loads)
    assert ".local" not in code


@pytest.mark.parametrize(
    ("strides", "sizes", "room", "is_whole"),
    [
        ((64 * 3136, 3136, 1), (256, 64, 3136), 16384, True),
        ((64 * 3136, 3136, 1), (256, 64, 3136), 8192, True),
        ((2048 * 49, 49, 1), (256, 2048, 49), 16384, True),
        ((64 * 25600, 25600, 1), (1, 64, 25600), 16384, False),
        ((64 * 3136, 1, 64), (256, 64, 3136), 16384, False),
        ((512 * 196, 1, 512), (256, 512, 196), 16384, True),
        ((3, 1, 3), (1, 3, 1), 8192, True),
        ((10**9, 10**9, 1), (1, 1, 10**9), 8192, False),
    ],
)
def test_tilings(strides, sizes, room, is_whole):
    samples, channels, positions = sizes
    cut = tiling.choose(strides, samples, channels, positions, room)
    assert cut.is_whole is is_whole
    assert cut.planes & (cut.planes - 1) == cut.span & (cut.span - 1) == 0
    assert cut.programs == samples * -(-channels // cut.planes)
    assert cut.planes * cut.span <= room
    assert 4 <= cut.warps <= 16
    if is_whole:
        assert cut.span >= positions


@pytest.mark.parametrize(
    ("make", "strides"),
    [
        (lambda x: x, (60, 20, 1)),
        (lambda x: x.contiguous(memory_format=torch.channels_last), (60, 1, 3)),
        (lambda x: x.transpose(2, 3), (60, 20, 1)),
        (lambda x: x[:, :, 1:3], (60, 20, 1)),
        (lambda x: x[:, 1:], (60, 20, 1)),
        (lambda x: x[..., :1], (60, 20, 5)),
        (lambda x: x[..., :1, :1], (60, 20, 1)),
        (lambda x: x[..., ::2], None),
        (lambda x: x.permute(0, 2, 1, 3), None),
    ],
)
def test_spatial_dimensions_collapse_where_they_are_one(make, strides):
    x = make(torch.empty(2, 3, 4, 5))
    assert tiling.collapse(x, tiling.spatial_order(x)) == strides


@pytest.mark.parametrize(
    ("strides", "sizes", "plain"),
    [
        ((60, 20, 1), (2, 3, 20), True),
        ((60, 1, 3), (2, 3, 20), True),
        ((0, 20, 1), (2, 3, 20), False),
        ((0, 20, 1), (1, 3, 20), True),
        ((60, 10, 1), (2, 3, 20), False),
        ((2**33, 2**31, 1), (1, 2, 20), False),
        ((2**40, 20, 1), (2, 3, 20), True),
    ],
)
def test_overlaps_and_long_strides_are_left_to_the_composite(strides, sizes, plain):
    assert tiling.is_plain(strides, *sizes) is plain


class FakeGpu:
    """As much of a CUDA tensor as the choice looks at."""

    device = torch.device("cuda", 0)
    dtype = torch.float32


@pytest.fixture
def _no_memory_of_devices():
    dispatch.kernels_on.cache_clear()
    yield
    dispatch.kernels_on.cache_clear()


@pytest.mark.usefixtures("_no_memory_of_devices")
def test_a_gpu_that_cannot_launch_gets_the_composite_and_one_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        torch, "zeros", lambda *sizes, device: (_ for _ in ()).throw(RuntimeError("no C compiler\nat all"))
    )
    with pytest.warns(UserWarning, match=r"without its Triton kernels on cuda:0.*RuntimeError: no C compiler$"):
        assert dispatch.implementation_for(FakeGpu()) is composite
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.implementation_for(FakeGpu()) is composite


@pytest.mark.usefixtures("_no_memory_of_devices")
def test_an_old_gpu_gets_the_composite(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert dispatch.implementation_for(FakeGpu()) is composite


def test_the_composite_serves_every_other_device(monkeypatch):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    expected = simam(x, gain=1.3), torch.autograd.grad(simam(x, gain=1.3).sum(), x)[0]
    monkeypatch.setattr(dispatch, "cpu", composite)
    torch.testing.assert_close((simam(x, gain=1.3), torch.autograd.grad(simam(x, gain=1.3).sum(), x)[0]), expected)
