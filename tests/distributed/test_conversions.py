"""SyncBatchNorm, moving averages and torch.ao, before and after injection: what works, and what raises."""

import copy
import re

import pytest
import torch
import torch.fx.experimental.optimization
from torch import nn
from torch.ao.quantization import (
    convert,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig,
    get_default_qconfig_mapping,
    prepare,
    prepare_qat,
    quantize_fx,
)
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from simam_inject import eject, inject, injected, simam
from simam_inject.errors import ModelError, NoMatchError
from tests.export.networks import image
from tests.networks import BasicBlock, Network

pytestmark = pytest.mark.filterwarnings("ignore:::torch.ao", "ignore::DeprecationWarning", "ignore::UserWarning")

RECIPE = "after basicblock.conv2"
SITES = ["blocks.0.conv2", "blocks.1.conv2"]
ADVICE = r"before such a change and inject\(model, recipe\) after it"
ACROSS = [["blocks.0.conv2", "blocks.0.bn2"]]
BESIDE = [["blocks.0.conv1", "blocks.0.bn1"], ["blocks.1.conv1", "blocks.1.bn1"]]


def network():
    """With batch statistics that a fold has to take in."""
    torch.manual_seed(0)
    model = Network().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return model


def attend(model, recipe=RECIPE):
    return inject(model, recipe, example_inputs=image())


def paths(model):
    return [insertion.path for insertion in injected(model)]


def test_sync_batch_norm_before_and_after_are_the_same():
    before = attend(nn.SyncBatchNorm.convert_sync_batchnorm(network()))
    after = nn.SyncBatchNorm.convert_sync_batchnorm(attend(network()))
    assert paths(before) == paths(after) == SITES
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in after.modules()) == 4
    with torch.no_grad():
        assert torch.equal(before(image()), after(image()))
        assert torch.equal(after(image()), attend(network())(image()))
    assert list(after.state_dict()) == list(network().state_dict())


def test_sync_batch_norm_at_the_attended_norm_itself():
    after = nn.SyncBatchNorm.convert_sync_batchnorm(attend(network(), "after basicblock.bn2"))
    with torch.no_grad():
        assert torch.equal(after(image()), attend(network(), "after basicblock.bn2")(image()))


def test_a_converted_model_can_be_ejected():
    after = nn.SyncBatchNorm.convert_sync_batchnorm(attend(network()))
    with torch.no_grad():
        assert torch.equal(eject(after)(image()), network()(image()))


def test_fuse_then_inject():
    model = attend(fuse_modules(network(), [*ACROSS, *BESIDE]))
    assert paths(model) == SITES


@pytest.mark.parametrize(
    ("recipe", "fuse"),
    [(RECIPE, fuse_modules), ("after basicblock.bn2", fuse_modules), ("after basicblock.bn2", fuse_modules_qat)],
)
def test_fusing_an_attended_pair_is_refused_at_the_first_forward(recipe, fuse):
    """Whether SimAM stood between the two, or behind the norm that is now an identity."""
    model = attend(network(), recipe)
    fused = fuse(model.train(fuse is fuse_modules_qat), ACROSS)
    with pytest.raises(ModelError, match=r"blocks\.0") as caught:
        fused(image(2))
    assert re.search(ADVICE, str(caught.value))
    model.eval()(image())  # both work on a copy


def test_fusing_beside_attention_is_exact():
    model = attend(network())
    fused = fuse_modules(model, BESIDE)
    assert paths(fused) == SITES
    with torch.no_grad():
        torch.testing.assert_close(fused(image()), model(image()), rtol=1e-5, atol=1e-6)


def test_fusing_for_quantization_aware_training_keeps_both_and_attention_between_them():
    model = attend(network()).train()
    fused, plain = fuse_modules_qat(model, ACROSS), network().train()
    assert torch.equal(fused(image(2)), model(image(2)))
    assert not torch.allclose(model(image(2)), plain(image(2)), rtol=1e-2)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        pytest.param(
            "after basicblock.bn2",
            marks=pytest.mark.xfail(reason="torch.fx drops a norm that it folds with its hooks, unseen", strict=True),
        ),
    ],
)
def test_fusing_in_a_graph_is_refused_at_the_first_forward(recipe):
    fused = quantize_fx.fuse_fx(attend(network(), recipe))
    with pytest.raises(ModelError, match=ADVICE):
        fused(image())


@pytest.mark.parametrize("first", ["inject", "prepare"])
def test_eager_quantization_prepares_in_either_order(first):
    model = network()
    model.qconfig = get_default_qconfig("x86")
    prepared = prepare(attend(model)) if first == "inject" else attend(prepare(model))
    prepared(image())
    assert paths(prepared) == SITES


def quantizable():
    model = nn.Sequential(torch.ao.quantization.QuantStub(), BasicBlock(3)).eval()
    model.qconfig = get_default_qconfig("x86")
    return model


def test_an_eagerly_quantized_model_is_refused_at_the_first_forward():
    """`convert` replaces the convolutions, and with them the modules that hold SimAM."""
    prepared = prepare(attend(quantizable()))
    with pytest.raises(ModelError, match=ADVICE):
        convert(prepared)(image())


@pytest.mark.parametrize("holder", ["0", "1.bn1"])
def test_convert_raises_if_a_stub_or_a_norm_holds_simam(holder):
    """Not `prepare`, which gives no observer to modules that have children."""
    prepared = prepare(attend(quantizable(), {"rules": [{"path": holder, "after": "output"}]}))
    prepared(image())
    with pytest.raises((AssertionError, AttributeError), match="activation_post_process"):
        convert(prepared)
    convert(prepare(quantizable()))


@pytest.mark.parametrize("fuse", [quantize_fx.fuse_fx, torch.fx.experimental.optimization.fuse])
def test_fusing_a_convolution_that_had_a_bias_is_refused_as_well(fuse):
    stock = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)).eval()
    fused = fuse(attend(stock, {"rules": [{"path": "0", "after": "output"}]}))
    with pytest.raises(ModelError, match=f"0 has a new bias.*{ADVICE}"):
        fused(image())


@pytest.mark.xfail(reason="torch.fx replaces convolutions by modules without their hooks, unseen", strict=True)
def test_graph_quantization_for_training_is_refused():
    prepared = quantize_fx.prepare_qat_fx(attend(network()).train(), get_default_qat_qconfig_mapping("x86"), image(2))
    with pytest.raises(ModelError, match=ADVICE):
        prepared(image(2))


@pytest.mark.xfail(reason="torch.fx replaces quantized modules by others without their hooks, unseen", strict=True)
def test_graph_quantization_of_a_module_with_simam_is_refused():
    stock = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)).eval()
    prepared = as_prepared(attend(stock, {"rules": [{"path": "0", "after": "output"}]}))
    prepared(image())
    converted = quantize_fx.convert_fx(prepared)
    with pytest.raises(ModelError, match=ADVICE):
        converted(image())


def test_graph_quantization_is_refused_at_the_first_forward():
    """It folds norms, and SimAM stands before one."""
    prepared = quantize_fx.prepare_fx(attend(network()), get_default_qconfig_mapping("x86"), (image(),))
    with pytest.raises(ModelError, match=ADVICE):
        prepared(image())


def test_preparing_for_quantization_aware_training_after_injection_is_refused():
    model = attend(network()).train()
    model.qconfig = get_default_qat_qconfig("x86")
    with pytest.raises(ModelError, match=ADVICE):
        prepare_qat(model)(image(2))


def test_prepare_for_quantization_aware_training_then_inject():
    """Fake quantization rounds what conv2 returns in a hook of its own, behind SimAM."""
    model = network().train()
    model.qconfig = get_default_qat_qconfig("x86")
    prepared = prepare_qat(model)
    before = {name: tensor.clone() for name, tensor in prepared.state_dict().items()}
    oracle = copy.deepcopy(prepared).eval()
    attend(prepared).eval()
    assert paths(prepared) == SITES
    after = prepared.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with torch.no_grad():
        plain = copy.deepcopy(oracle)(image())
        for path in SITES:
            oracle.get_submodule(path).register_forward_hook(lambda _module, _args, y: simam(y, 1e-4), prepend=True)
        expected = oracle(image())
        found = prepared(image())
    assert torch.equal(found, expected)
    assert not torch.allclose(found, plain, rtol=1e-2)


def as_fused(model):
    return quantize_fx.fuse_fx(model)


def as_prepared(model):
    return quantize_fx.prepare_fx(model, get_default_qconfig_mapping("x86"), (image(),))


@pytest.mark.parametrize("convert_graph", [as_fused, as_prepared])
def test_a_converted_graph_has_no_blocks_to_name(convert_graph):
    with pytest.raises(NoMatchError, match="matches no site: this model has no block named 'basicblock'"):
        attend(convert_graph(network()))


def test_a_moving_average_holds_the_sites_either_way():
    before = AveragedModel(network())
    attend(before.module)
    after = AveragedModel(attend(network()))
    model = attend(network())
    for average in (before, after):
        assert paths(average.module) == SITES
        average.update_parameters(model)
        with torch.no_grad():
            assert torch.equal(average(image()), model(image()))
        assert list(average.module.state_dict()) == list(network().state_dict())


def test_a_block_whose_class_is_swapped_keeps_its_attention():
    class Scaled(BasicBlock):
        def __init__(self, channels):
            super().__init__(channels)
            self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.7))

        def forward(self, x):
            return self.scale * super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Scaled(8)).eval()
    plain = model(image())
    attend(model, "after scaled.conv2")
    attended = model(image())
    parametrize.register_parametrization(model[1], "scale", nn.Identity())
    assert type(model[1]).__name__ == "ParametrizedScaled"
    assert torch.equal(model(image()), attended)
    assert not torch.allclose(attended, plain, rtol=1e-2)
    eject(model)
    assert torch.equal(model(image()), plain)
