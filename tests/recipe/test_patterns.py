"""Patterns on real networks: what lies between two operations of a chain."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn
from torchvision.ops import StochasticDepth

from simam_inject import plan
from simam_inject.errors import NoMatchError


class Between(nn.Module):
    """A convolution and a norm with something between them, which may be read twice."""

    def __init__(self, between, *, reads_twice=""):
        super().__init__()
        self.conv, self.norm, self.next = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.between, self.reads_twice = between, reads_twice

    def forward(self, x):
        x = self.conv(x)
        y = self.between(x)
        more = {"": 0, "source": x, "result": y}[self.reads_twice]
        return self.next(self.norm(y) + more)


def functional_dropout(x):
    return F.dropout(x, 0.1, False)


WAYS = {
    "identity": nn.Identity(),
    "dropout": nn.Dropout2d(0.1),
    "functional dropout": functional_dropout,
    "contiguous": torch.Tensor.contiguous,
    "clone": torch.clone,
    "cast": torch.Tensor.float,
    "cast back": lambda x: x.double().to(x.dtype),
    "cast as": lambda x: x.double().type_as(torch.zeros(1)),
    "type": lambda x: x.type(torch.float64).type(x.dtype),
    "AlphaDropout": nn.AlphaDropout(0.1),
    "StochasticDepth": StochasticDepth(0.1, "row"),
    "two": nn.Sequential(nn.Identity(), nn.Dropout(0.1)),
    "a block": nn.Sequential(nn.Sequential(nn.Identity())),
}


def conv_sites(network, pattern):
    rule = {"pattern": pattern, "after": "conv2d"}
    planned = plan(network, {"rules": [rule]}, example_inputs=torch.rand(1, 3, 16, 16))
    return [site.path for site in planned.insertions]


@pytest.mark.parametrize("between", WAYS)
def test_a_chain_looks_through_operations_that_pass_their_input_on(between):
    assert conv_sites(Between(WAYS[between]), "conv2d > batch_norm > add") == ["conv"]


@pytest.mark.parametrize(
    ("between", "pattern"),
    [
        ("dropout", "conv2d > dropout > batch_norm"),
        ("functional dropout", "conv2d > dropout"),
        ("contiguous", "conv2d > contiguous > norm"),
        ("two", "conv2d > identity > dropout > bn"),
        ("two", "conv2d > dropout > bn"),
        ("two", "conv2d > identity > bn"),
    ],
)
def test_a_chain_may_name_them(between, pattern):
    assert conv_sites(Between(WAYS[between]), pattern) == ["conv"]


@pytest.mark.parametrize("reads_twice", ["source", "result"])
@pytest.mark.parametrize("between", WAYS)
def test_each_value_of_a_chain_has_one_reader_before_and_behind_them(between, reads_twice):
    with pytest.raises(NoMatchError, match="is read by 2 operations"):
        conv_sites(Between(WAYS[between], reads_twice=reads_twice), "conv2d > batch_norm")


def test_the_operand_that_the_chain_goes_on_by_is_found_behind_them():
    network = Between(WAYS["two"])
    rule = {"pattern": "conv2d > batch_norm", "before": "batch_norm"}
    planned = plan(network, {"rules": [rule]}, example_inputs=torch.rand(1, 3, 16, 16))
    assert [site.path for site in planned.insertions] == ["between"]


def test_asking_for_the_type_of_a_tensor_is_no_reading():
    def ask(x):
        return x.float() if x.type() == "torch.cuda.HalfTensor" else x

    rule = {"pattern": "conv2d > batch_norm", "before": "batch_norm"}
    planned = plan(Between(ask), {"rules": [rule]}, example_inputs=torch.rand(1, 3, 16, 16))
    assert [site.path for site in planned.insertions] == ["conv"]


class GELUActivation(nn.Module):
    """As transformers writes it."""

    def forward(self, x):
        return F.gelu(x)


class LayerDropPath(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.1, True) if self.training else x


class OwnFrozenBatchNorm2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.full((1, 8, 1, 1), 2.0))

    def forward(self, x):
        return x * self.weight + 1


@pytest.mark.parametrize(
    ("own", "pattern"),
    [
        (GELUActivation, "conv2d > act > conv2d"),
        (GELUActivation, "conv2d > gelu"),
        (LayerDropPath, "conv2d > conv2d"),
        (nn.Sequential, "conv2d > conv2d"),
        (OwnFrozenBatchNorm2d, "conv2d > norm > conv2d"),
        (OwnFrozenBatchNorm2d, "conv2d > bn"),
    ],
)
def test_classes_of_other_libraries_are_of_the_kind_of_what_they_do(own, pattern):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), own(), nn.Conv2d(8, 4, 3))
    rule = {"pattern": pattern, "after": "conv2d[1]" if pattern.count("conv2d") > 1 else "conv2d"}
    planned = plan(network, {"rules": [rule]}, example_inputs=torch.rand(1, 3, 16, 16))
    assert [site.path for site in planned.insertions] == ["0"]


FUNCTIONS = {
    "max_pool[k=3, s=2]": (nn.MaxPool2d(3, 2), lambda x: F.max_pool2d(x, kernel_size=3, stride=2)),
    "max_pool[k=2, s=2, d=1]": (nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2)),
    "avg_pool[k=2, s=2]": (nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, (2, 2))),
    "conv_transpose2d[k=2, s=2, g=1]": (
        nn.ConvTranspose2d(8, 8, 2, 2),
        lambda x: F.conv_transpose2d(x, torch.ones(8, 8, 2, 2, device=x.device), stride=2),
    ),
    "conv_transpose2d[k=2, g=depthwise]": (
        nn.ConvTranspose2d(8, 8, 2, groups=8),
        lambda x: F.conv_transpose2d(x, torch.ones(8, 1, 2, 2, device=x.device), groups=8),
    ),
}


@pytest.mark.parametrize("pattern", FUNCTIONS)
def test_kernel_and_stride_of_functions_are_those_of_modules(pattern):
    for between in FUNCTIONS[pattern]:
        assert conv_sites(Between(between), f"conv2d > {pattern}") == ["conv"]
        with pytest.raises(NoMatchError, match="requires"):
            conv_sites(Between(between), f"conv2d > {pattern.replace('k=', 'k=1')}")


def test_pooling_of_volumes_has_three_lengths():
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.MaxPool3d(2), nn.Conv3d(4, 4, 3))
    rule = {"path": "*", "after": {"op": "max_pool", "kernel": "2x2x2"}}
    planned = plan(network, {"rules": [rule]}, example_inputs=torch.rand(1, 1, 16, 16, 16))
    assert [site.path for site in planned.insertions] == ["1"]


class OwnConv(nn.modules.conv._ConvNd):
    """Of no class with a number of dimensions in its name."""

    def __init__(self):
        super().__init__(3, 8, (3, 3), (1, 1), (0, 0), (1, 1), False, (0, 0), 1, True, "zeros")

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


def test_a_convolution_that_derives_from_the_base_class():
    network = nn.Sequential(OwnConv(), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert conv_sites(network, "conv2d[k=3] > relu") == ["0"]


class Route(nn.Module):
    def forward(self, a, b):
        return b


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.route, self.next = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), Route(), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.next(self.route(self.a(x), self.b(x)).relu())


def test_a_module_that_returns_one_of_several_maps_is_no_identity():
    with pytest.raises(NoMatchError, match="route"):
        conv_sites(Routed(), "conv2d > relu")


def test_a_digit_in_brackets_is_a_character_of_a_class_name():
    class Stage2(nn.Sequential):
        pass

    network = nn.Sequential(nn.Conv2d(3, 8, 3), Stage2(nn.Conv2d(8, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 1))
    rule = {"block": "Stage[2]", "after": "output"}
    assert len(plan(network, {"rules": [rule]}, example_inputs=torch.rand(1, 3, 16, 16)).insertions) == 1
