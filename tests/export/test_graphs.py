"""The ONNX form of SimAM: short, without a shape chain where sizes are fixed, safe in half precision."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript import ir
from torch import nn

from simam_inject import inject
from simam_inject.export import export
from simam_inject.export.formats import scope_of
from tests.export.networks import attended, image


def attention_nodes(path):
    return [node for node in ir.load(path).graph if scope_of(node).endswith(".simam")]


def test_a_site_of_fixed_size_is_short_and_computes_no_shape(tmp_path):
    export(attended(), tmp_path / "net.onnx", example_inputs=image())
    kinds = Counter(node.op_type for node in attention_nodes(tmp_path / "net.onnx"))
    assert not kinds.keys() & {"Shape", "Size", "Gather", "Cast", "Pow", "Reshape", "Expand"}
    assert kinds.total() == 2 * 13
    assert kinds["Sigmoid"] == 2


class Block(nn.Module):
    """Hands what it is given to SimAM as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        nn.init.dirac_(self.conv.weight)

    def forward(self, x):
        return self.conv(x)


def wild(side=80):
    """A standard deviation of 100: squares overflow float16, and so do their sums at a hundredth of it."""
    return torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(1)) * 100


@pytest.fixture(scope="module")
def exported_block(tmp_path_factory):
    model = inject(nn.Sequential(Block()), "after block.conv", example_inputs=wild(), verify=False).eval()
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    export(model, path, example_inputs=wild())
    return model, path


def half_and_float32(graph, model):
    """What the graph computes in float16, which is finite, and what the model does in float32."""
    session = onnxruntime.InferenceSession(graph)
    x = wild().half()
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert result.dtype == np.float16
    assert np.isfinite(result).all()
    with torch.no_grad():
        expected = model(x.float()).numpy()
    assert np.abs(result - expected).max() <= 1e-2 * np.abs(expected).max()
    return result, expected


def test_a_half_precision_model_stays_finite_and_near_float32(exported_block, tmp_path):
    model, _ = exported_block
    report = export(copy.deepcopy(model).half(), tmp_path / "half.onnx", example_inputs=wild().half())
    result, expected = half_and_float32(str(report.path), model)
    np.testing.assert_allclose(result, expected, rtol=1e-2, atol=1e-2)


def test_a_float32_file_turned_into_float16_stays_finite_and_near_float32(exported_block):
    """What TensorRT's and Core ML's half modes do: every tensor of the graph becomes float16."""
    model, path = exported_block
    half_and_float32(to_float16(onnx.load(str(path))).SerializeToString(), model)


def to_float16(model):
    """Initialisers, constants, inputs and outputs in float16, and no float32 left."""
    model = copy.deepcopy(model)
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model
