"""SimAM under torch.compile: one graph, right gradients, dynamic sizes, and code in which nothing is opaque."""

import re
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code, run_fw_bw_and_get_code

from benchmarks.popular import PopularSimAM
from simam_inject.attention import SimAM, gate, simam
from tests.attention.test_values import bytes_kept, laid_out
from tests.attention.truth import TOLERANCE, assert_true, distance, truth

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def kernels(code):
    """How many kernels generated code launches, and the numbers of elements of the buffers it makes."""
    made = re.findall(r"empty_strided_cpu\(\(([\d, ]*)\)", code)
    sizes = [torch.Size(int(part) for part in shape.split(",") if part.strip()).numel() for shape in made]
    return len(re.findall(r"^\s+cpp_fused\w*\(", code, re.MULTILINE)), Counter(sizes)


def passes(code, shape):
    """How often generated code reads and writes every position of maps of this shape (16 vectors per plane at most)."""
    positions = shape[-2] * shape[-1]
    place = rf"static_cast<int64_t>\(x1 \+ {positions}L\*x0\)"
    kernel = code[code.index('extern "C"') :]
    return tuple(len(re.findall(rf"{way}_ptr\d+(?: \+ |\[){place}", kernel)) for way in ("in", "out"))


def assert_nothing_is_opaque(code):
    assert "extern_kernels." not in re.sub(r"extern_kernels = .*", "", code)
    assert "torch.ops.aten." not in code
    assert "simam" not in re.sub(r"#.*", "", code)


@pytest.mark.parametrize("neighbours", [[], [nn.BatchNorm2d(8), nn.ReLU()]], ids=["alone", "with a norm and ReLU"])
def test_inference_is_one_kernel_and_one_buffer(neighbours):
    block = nn.Sequential(SimAM(), *neighbours).eval()
    x = torch.randn(2, 8, 16, 16)
    expected = block[1:](truth(x, x)[0].float())
    with torch.no_grad():
        y, (code,) = run_and_get_code(torch.compile(block, fullgraph=True), x)
    assert distance(y, expected) < TOLERANCE[x.dtype]
    assert_nothing_is_opaque(code)
    launches, buffers = kernels(code)
    assert launches == 1
    assert buffers[x.numel()] == 1


def test_passes_over_the_map():
    """On a CPU the mean, the variance and the product each read x; a backward reads x and its gradient twice."""
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    found = {}
    for operator in (simam, PopularSimAM()):
        compiled = torch.compile(operator, fullgraph=True)
        _, codes = run_fw_bw_and_get_code(lambda compiled=compiled: compiled(x))
        found[operator] = [passes(code, x.shape) for code in codes]
    ours, popular = found.values()
    assert ours == [(3, 1), (4, 1)]
    assert sum(popular[1]) > sum(ours[1])


@pytest.mark.parametrize(
    ("dtype", "layout", "made", "numbers"),
    [
        (torch.float32, "contiguous", [1, 1], {}),
        (torch.float32, "contiguous", [1, 1], {"strength": 0.3, "gain": 1.7}),
        # On a CPU Inductor stores h d rather than compute its exponential again.
        (torch.bfloat16, "channels_last", [1, 2], {}),
        (torch.bfloat16, "channels_last", [1, 2], {"strength": 0.3, "gain": 1.7}),
    ],
    ids=str,
)
def test_training_is_two_kernels_that_keep_one_copy(dtype, layout, made, numbers):
    x = laid_out(torch.randn(2, 16, 14, 14).to(dtype), layout).requires_grad_()
    compiled = torch.compile(partial(simam, **numbers), fullgraph=True)
    y, codes = run_fw_bw_and_get_code(lambda: compiled(x))
    for code, most in zip(codes, made, strict=True):
        assert_nothing_is_opaque(code)
        launches, buffers = kernels(code)
        assert launches == 1
        assert 1 <= buffers[x.numel()] <= most
    assert bytes_kept(compiled, x) <= 1.10 * x.nbytes
    assert_true(compiled, x, **numbers)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("grad", [False, True])
def test_dynamic_sizes_need_few_graphs(grad):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(simam, fullgraph=True, backend=counter, dynamic=True)
    for shape in [(2, 3, 8, 8), (4, 3, 6, 9), (3, 5, 7, 7), (1, 3, 5, 5), (2, 3, 1, 5), (2, 4, 1, 1), (5, 6, 11, 4)]:
        x = torch.randn(shape, requires_grad=grad)
        y = compiled(x)
        assert distance(y, truth(x, x)[0]) < 1e-6
        if grad:
            torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(simam(x).sum(), x))
    assert counter.frame_count <= 6


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_numbers_and_layout_may_vary_with_few_graphs(channel_dim):
    """A ramp of a whole network is in tests/warmup/test_compiled.py."""
    module = SimAM(0.1, channel_dim=channel_dim)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    for step in range(12):
        numbers = {"strength": step / 11, "gain": 1.0 + step / 30}
        for name, value in numbers.items():
            setattr(module, name, value)
        ours, theirs = compiled(x), simam(x, 0.1, channel_dim=channel_dim, **numbers)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x) for y in (ours, theirs)))
    assert counter.frame_count <= 4
    module.bypassed = True
    assert torch.equal(compiled(x), x)


@pytest.mark.parametrize("strengths", [[0.0], [0.5, 0.25, 0.0]], ids=["constant", "ramp"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_strength_0_is_the_identity(strengths, backend):
    compiled = torch.compile(simam, fullgraph=True, backend=backend)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    grad = torch.randn_like(x)
    for strength in strengths:
        y = compiled(x, strength=strength, gain=1.5)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], grad)


def test_the_gate_compiles():
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.compile(gate, fullgraph=True, backend="aot_eager")(x, 0.1), gate(x, 0.1))


def test_a_wrong_argument_still_says_so():
    compiled = torch.compile(lambda t: simam(t, 0.1), backend="eager")
    with pytest.raises(Exception, match="3 to 5 dimensions"):
        compiled(torch.ones(3))


def test_autocast_keeps_the_dtype():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def inside(x):
        with torch.autocast("cpu", torch.bfloat16):
            return simam(x)

    for dtype in (torch.float32, torch.float16):
        assert inside(torch.randn(1, 2, 3, 3).to(dtype)).dtype == dtype


def test_compiled_autograd_takes_the_eager_function():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = simam(x)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        y.sum().backward()
    assert distance(x.grad, truth(x, torch.ones_like(x))[1]) < 1e-6
