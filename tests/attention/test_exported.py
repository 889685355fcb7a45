"""SimAM in torch.export, ONNX and torch.jit.trace: short, true at every size, safe in half precision."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from simam_inject.attention import SimAM, composite, simam
from tests.attention.truth import TOLERANCE, distance, truth

SPATIAL = {2: torch.export.Dim("height", min=1, max=64), 3: torch.export.Dim("width", min=1, max=64)}


def test_a_fixed_size_exports_to_thirteen_operations_and_no_shapes():
    module, x = SimAM(0.1), torch.randn(2, 3, 7, 7)
    program = torch.export.export(module, (x,))
    assert distance(program.module()(x), truth(x, x, 0.1)[0]) < 1e-6
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len(names) == 13
    assert not any("size" in name or "sym" in name or name.startswith("torch.ops.higher_order") for name in names)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_takes_other_sizes_and_trains(strict):
    program = torch.export.export(
        nn.Sequential(SimAM()),
        (torch.randn(2, 3, 7, 7),),
        dynamic_shapes=({0: torch.export.Dim("batch"), **SPATIAL},),
        strict=strict,
    )
    for shape in [(1, 3, 5, 9), (3, 3, 1, 2), (2, 3, 1, 1), (2, 3, 40, 40)]:
        x = torch.randn(shape, requires_grad=True)
        y = program.module()(x)
        expected = truth(x, torch.ones_like(x))
        assert distance(y, expected[0]) < 1e-6
        assert distance(torch.autograd.grad(y.sum(), x)[0], expected[1]) < 1e-6


def onnx_of(module, x, path, **options):
    torch.onnx.export(module.eval(), (x,), str(path), dynamo=True, verbose=False, **options)
    return onnx.load(str(path)), onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session, x):
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_onnx_of_a_fixed_size_is_short_and_true(tmp_path):
    x = torch.randn(2, 3, 14, 14) * 30
    graph, session = onnx_of(SimAM(), x, tmp_path / "fixed.onnx")
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert kinds.total() == 13
    assert not kinds.keys() & {"Shape", "Gather", "Cast", "Expand", "Pow"}
    assert distance(run(session, x), truth(x, x)[0]) < 1e-6


def test_onnx_of_any_size_is_true(tmp_path):
    shapes = ({0: torch.export.Dim("batch"), **SPATIAL},)
    _, session = onnx_of(SimAM(), torch.randn(2, 3, 7, 7), tmp_path / "any.onnx", dynamic_shapes=shapes)
    for shape in [(1, 3, 5, 9), (3, 3, 1, 2), (2, 3, 1, 1), (2, 3, 40, 40)]:
        x = torch.randn(shape)
        assert distance(run(session, x), truth(x, x)[0]) < 1e-6


def test_onnx_in_half_precision_keeps_float32_statistics(tmp_path):
    x = (torch.randn(1, 2, 80, 80) * 100).half()
    _, session = onnx_of(SimAM().half(), x, tmp_path / "half.onnx")
    y = run(session, x)
    assert y.dtype == torch.float16
    assert distance(y, truth(x, x)[0]) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("std", [0.1, 1.0, 100.0, 300.0])
def test_even_float16_arithmetic_does_not_overflow(std, monkeypatch):
    """A runtime may run the exported float32 graph in float16 throughout."""
    x = (torch.randn(1, 2, 80, 80) * std).half()
    monkeypatch.setattr(composite, "statistics_dtype", lambda dtype: dtype)
    assert distance(composite.two_pass(x, 1e-4, (2, 3)), truth(x, x)[0]) < 5e-3


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_torchscript_trace_takes_other_sizes(dtype, tmp_path):
    traced = torch.jit.trace(SimAM(), torch.randn(2, 3, 7, 7).to(dtype))
    torch.jit.save(traced, tmp_path / "traced.pt")
    loaded = torch.jit.load(tmp_path / "traced.pt")
    for shape in [(2, 3, 7, 7), (1, 3, 5, 9), (3, 3, 1, 2), (2, 3, 1, 1)]:
        x = torch.randn(shape).to(dtype)
        for module in (traced, loaded):
            assert distance(module(x), truth(x, x)[0]) < TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_torchscript_trace_does_not_depend_on_the_default_dtype(dtype, default):
    torch.set_default_dtype(default)
    try:
        traced = torch.jit.trace(SimAM(0.1), torch.randn(2, 3, 7, 7, dtype=dtype))
    finally:
        torch.set_default_dtype(torch.float32)
    x = torch.randn(2, 3, 9, 5, dtype=dtype)
    assert distance(traced(x), truth(x, x, 0.1)[0]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("std", [1.0, 100.0])
def test_every_composite_is_true(dtype, std):
    x = (torch.randn(2, 3, 40, 40) * std).to(dtype)
    for y in (composite.two_pass(x, 1e-4, (2, 3)), composite.forward(x, 1e-4, 1.0, 1.0, False)[0]):
        assert distance(y, truth(x, x)[0]) < TOLERANCE[dtype]


def test_statistics_are_those_of_torch():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    expected = composite.statistics(x, 0.1)
    torch.testing.assert_close(expected, (mean, 1 / (4 * (variance + 0.1))))
    fake = composite.statistics(x.to("meta"), 0.1)
    assert [part.shape for part in fake] == [part.shape for part in expected]
    assert simam(x.to("meta")).shape == x.shape


def mixed(strength, gain):
    module = SimAM(0.1)
    module.strength, module.gain = strength, gain
    return module


def test_strength_and_gain_are_exported(tmp_path):
    module, x = mixed(0.3, 1.7), torch.randn(2, 3, 7, 7)
    expected = truth(x, x, 0.1, strength=0.3, gain=1.7)[0]
    _, session = onnx_of(module, x, tmp_path / "mixed.onnx")
    traced = torch.jit.trace(module, x)
    programs = [torch.export.export(module, (x,), strict=strict).module() for strict in (False, True)]
    for y in (run(session, x), traced(x), *(program(x) for program in programs)):
        assert distance(y, expected) < 1e-6
    names = [node.target for node in torch.export.export(module, (x,)).graph.nodes if node.op == "call_function"]
    assert len(names) == 15


def test_strength_0_exports_to_the_identity():
    x = torch.randn(2, 3, 7, 7)
    for strict in (False, True):
        program = torch.export.export(mixed(0.0, 1.7), (x,), strict=strict)
        assert torch.equal(program.module()(x), x)
        assert sum(node.op == "call_function" for node in program.graph.nodes) == 1
