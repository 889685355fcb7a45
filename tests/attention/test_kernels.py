"""The Triton kernels: run under the interpreter, compiled for a GPU that is not there, cut into tiles, done without."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from simam_inject.attention import composite, functional, simam

triton = pytest.importorskip("triton")

from simam_inject.attention import kernels, tiles  # noqa: E402  # need triton

HERE = Path(__file__).parent


def run_interpreted(*selection, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
    command.append(str(HERE / "interpreted.py"))
    result = subprocess.run(
        command, cwd=HERE.parents[1], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= 20


def version_of(package):
    return tuple(map(int, package.__version__.split(".")[:2]))


needs_interpreter = pytest.mark.skipif(
    version_of(triton) < (3, 7) and version_of(np) >= (2, 4),
    reason=f"the interpreter of triton {triton.__version__} takes arrays of one element as numbers, which NumPy "
    f"{np.__version__} refuses: it needs NumPy 2.3 or older",
)


@needs_interpreter
def test_kernels_are_true_under_the_interpreter():
    run_interpreted(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@needs_interpreter
@pytest.mark.long
def test_more_shapes_are_true_under_the_interpreter():
    run_interpreted("-m", "long", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
def test_kernels_are_true_on_a_gpu():
    run_interpreted("-m", "long or not long")


CONTIGUOUS = tiles.Flat((256, 64, 4096), (64 * 4096, 4096, 1))
CHANNELS_LAST = tiles.Flat((256, 64, 64), (64 * 64, 1, 64))


def compiled(kernel, flat, saves=True):
    """`kernel` as PTX and as machine code of an H100, for bfloat16 maps like this one. No device is needed.

    As at a launch, an integer of 1 is a constant, and one that 16 divides is known to be that.
    """
    _, tile = tiles.choose.__wrapped__(flat)
    signature, constants, attributes = {}, {}, {}

    def integer(value, *place):
        if value == 1:
            constants[place] = 1
            return "constexpr"
        if value % 16 == 0:
            attributes[place] = [["tt.divisibility", 16]]
        return "i32"

    for index, name in enumerate(kernel.arg_names):
        is_absent = name in {"mean_ptr", "a_ptr"} and not saves
        if name in tile or is_absent or (name.startswith("part_") and tile["parts"] == 0):
            signature[name] = "constexpr"
            constants[(index,)] = tile.get(name)
        elif name.endswith("_ptr"):
            signature[name] = "*fp32" if name in {"mean_ptr", "a_ptr"} or name.startswith("part_") else "*bf16"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif name.endswith("_strides"):
            signature[name] = tuple(integer(stride, index, place) for place, stride in enumerate(flat.strides))
        elif name in {"channels", "positions"}:
            signature[name] = integer(flat.sizes[1 if name == "channels" else 2], index)
        else:
            signature[name] = "fp32"
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": tile["num_warps"]}).asm


@pytest.fixture
def _compiler(tmp_path, monkeypatch):
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this triton cannot compile for NVIDIA")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


KERNELS = pytest.mark.parametrize(
    ("kernel", "saves"),
    [(kernels._forward, False), (kernels._forward, True), (kernels._backward, True)],
    ids=["inference", "forward", "backward"],
)


@KERNELS
@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("sizes", [(2, 1, 49), (2, 3, 1), (1, 1, 1)], ids=str)
def test_kernels_compile_for_one_channel_and_one_position(kernel, saves, sizes):
    flat = tiles.Flat(sizes, torch.empty(sizes, device="meta").stride())
    assert compiled(kernel, flat, saves)["cubin"]


@pytest.mark.parametrize("room", [16384, 512], ids=["whole", "in parts"])
@pytest.mark.parametrize("flat", [CONTIGUOUS, CHANNELS_LAST], ids=["contiguous", "channels last"])
@KERNELS
@pytest.mark.usefixtures("_compiler")
def test_kernels_compile_with_wide_loads_and_no_spills(kernel, saves, flat, room, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "ROOM", room)
    monkeypatch.setattr(tiles, "CHANNELS_LAST_ROOM", room)
    code = compiled(kernel, flat, saves)
    loads = re.findall(r"ld\.global\S*", code["ptx"])
    assert any(".v4.b32" in load for load in loads)
    assert not any(load.endswith(".b16") for load in loads)
    (tmp_path / "kernel.cubin").write_bytes(code["cubin"])
    reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [reader, "--dump-resource-usage", tmp_path / "kernel.cubin"]
    assert " STACK:0 " in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("sizes", "strides", "is_whole"),
    [
        ((256, 64, 3136), (64 * 3136, 3136, 1), True),
        ((256, 2048, 49), (2048 * 49, 49, 1), True),
        ((1, 64, 25600), (64 * 25600, 25600, 1), True),
        ((1, 64, 90000), (64 * 90000, 90000, 1), False),
        ((256, 64, 3136), (64 * 3136, 1, 64), False),
        ((8, 64, 3136), (64 * 3136, 1, 64), False),
        ((1, 64, 25600), (64 * 25600, 1, 64), False),
        ((1, 2048, 3136), (2048 * 3136, 1, 2048), False),
        ((256, 512, 196), (512 * 196, 1, 512), True),
        ((1, 3, 1), (3, 1, 3), True),
        ((1, 3, 10**6), (3 * 10**6, 1, 3), False),
        ((1, 1, 10**9), (10**9, 10**9, 1), False),
    ],
)
def test_tiles_cover_every_plane_and_fill_the_device(sizes, strides, is_whole):
    samples, channels, positions = sizes
    (programs,), tile = tiles.choose(tiles.Flat(sizes, strides))
    parts, planes, span = tile["parts"], tile["planes"], tile["span"]
    assert (parts == 0) is is_whole
    assert planes & (planes - 1) == span & (span - 1) == parts & (parts - 1) == 0
    assert programs == samples * -(-channels // planes) * max(1, parts)
    assert planes * span <= tiles.ROOM
    assert planes * parts <= 1024
    assert programs >= 256 or is_whole or parts == 64
    assert 1 <= tile["num_warps"] <= 16
    if is_whole:
        assert span >= positions


@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (lambda x: x, True),
        (lambda x: x.contiguous(memory_format=torch.channels_last), True),
        (lambda x: x.transpose(2, 3), True),
        (lambda x: x[:, 1:, 1:3], True),
        (lambda x: x[..., :1], True),
        (lambda x: x[..., :1, :1], True),
        (lambda x: x[..., ::2], False),
        (lambda x: x.permute(0, 2, 1, 3), False),
        (lambda x: x.double(), False),
        (lambda x: x[:1].expand(2, -1, -1, -1), False),
        (lambda x: x[:, :1].expand(-1, 3, -1, -1), False),
        (lambda x: torch.empty_strided((2, 3, 20), (60, 10, 1), device="meta"), False),
        (lambda x: torch.empty_strided((1, 2, 20), (2**33, 2**31, 1), device="meta"), False),
        (lambda x: torch.empty_strided((2, 3, 20), (2**40, 20, 1), device="meta"), True),
        (lambda x: torch.empty(2**16, 2**15, 1, device="meta"), False),
        (lambda x: torch.complex(x, x).imag, True),
        (lambda x: torch.complex(x, x).conj().imag, False),
    ],
)
def test_what_overlaps_or_has_several_strides_is_left_to_the_composite(make, fits):
    assert tiles.fits(make(torch.empty(2, 3, 4, 5))) is fits


class FakeGpu:
    """As much of a CUDA tensor as the choice looks at."""

    device = torch.device("cuda", 0)
    dtype = torch.float32


@pytest.fixture
def _no_memory_of_devices():
    functional.kernels_on.cache_clear()
    yield
    functional.kernels_on.cache_clear()


@pytest.mark.usefixtures("_no_memory_of_devices")
def test_a_gpu_that_cannot_launch_gets_the_composite_and_one_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        torch, "zeros", lambda *sizes, device: (_ for _ in ()).throw(RuntimeError("no C compiler\nat all"))
    )
    with pytest.warns(UserWarning, match=r"without its Triton kernels on cuda:0.*RuntimeError: no C compiler$"):
        assert functional.implementation_for(FakeGpu()) is composite
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert functional.implementation_for(FakeGpu()) is composite


@pytest.mark.usefixtures("_no_memory_of_devices")
def test_an_old_gpu_gets_the_composite(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert functional.implementation_for(FakeGpu()) is composite


def test_the_composite_serves_every_other_device(monkeypatch):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    expected = simam(x, gain=1.3), torch.autograd.grad(simam(x, gain=1.3).sum(), x)[0]
    monkeypatch.setattr(functional, "cpu", composite)
    torch.testing.assert_close((simam(x, gain=1.3), torch.autograd.grad(simam(x, gain=1.3).sum(), x)[0]), expected)
