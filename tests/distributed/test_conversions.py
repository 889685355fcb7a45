"""SyncBatchNorm and torch.ao's fuse and prepare, before and after injection: what works, what says that it cannot."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    convert,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qconfig,
    get_default_qconfig_mapping,
    prepare,
    prepare_qat,
    quantize_fx,
)
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from simam_inject import eject, inject, injected, simam
from simam_inject.errors import InjectError, ModelError, NoMatchError
from tests.export.networks import BasicBlock, Network, image

pytestmark = pytest.mark.filterwarnings("ignore:::torch.ao", "ignore::DeprecationWarning", "ignore::UserWarning")

RECIPE = "after basicblock.conv2"
SITES = ["blocks.0.conv2", "blocks.1.conv2"]
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


@pytest.mark.parametrize("fuse", [fuse_modules, fuse_modules_qat])
def test_fusing_across_attention_is_refused_at_the_first_forward(fuse):
    model = attend(network())
    fused = fuse(model.train(fuse is fuse_modules_qat), ACROSS)
    with pytest.raises(InjectError, match=r"BasicBlock: bn2 was folded into conv2, but SimAM stands between") as caught:
        fused(image(2))
    assert "Fold before inject, leave this pair out, or put SimAM after bn2" in str(caught.value)
    model.eval()(image())  # fuse_modules works on a copy


def test_fusing_beside_attention_is_exact():
    model = attend(network())
    fused = fuse_modules(model, BESIDE)
    assert paths(fused) == SITES
    with torch.no_grad():
        torch.testing.assert_close(fused(image()), model(image()), rtol=1e-5, atol=1e-6)


def test_fusing_below_an_attended_norm_is_exact():
    model = attend(network(), "after basicblock.bn2")
    fused = fuse_modules(model, ACROSS)
    with torch.no_grad():
        torch.testing.assert_close(fused(image()), model(image()), rtol=1e-5, atol=1e-6)


def test_fx_fusion_sees_attention_between_and_leaves_the_pair_alone():
    model = attend(network())
    fused = quantize_fx.fuse_fx(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(fused(image()), model(image()), rtol=1e-5, atol=1e-6)
    assert isinstance(fused.get_submodule("blocks.0").bn2, nn.BatchNorm2d)


@pytest.mark.parametrize("first", ["inject", "prepare"])
def test_eager_quantization_prepares_in_either_order(first):
    model = network()
    model.qconfig = get_default_qconfig("x86")
    prepared = prepare(attend(model)) if first == "inject" else attend(prepare(model))
    prepared(image())
    assert paths(prepared) == SITES


def test_an_eagerly_quantized_map_is_refused_by_its_name():
    """SimAM computes statistics in float; eager quantization hands it int8 without asking."""

    class Quantized(nn.Sequential):
        pass

    block = BasicBlock(3)
    model = Quantized(torch.ao.quantization.QuantStub(), block).eval()
    model.qconfig = get_default_qconfig("x86")
    attend(model)
    prepared = prepare(model)
    with pytest.raises(InjectError, match=r"floating-point maps .* found torch\.quint8"):
        convert(prepared)(image())


def test_graph_quantization_keeps_attention_in_float():
    model = attend(network())
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (image(),))
    with torch.no_grad():
        prepared(image())
        quantized = quantize_fx.convert_fx(prepared)
        result, wanted = quantized(image()), model(image())
    plain = network()
    assert (result - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert (result - wanted).abs().max() < 0.2 * (plain(image()) - wanted).abs().max()


def test_inject_then_prepare_for_quantization_aware_training():
    model = attend(network()).train()
    model.qconfig = get_default_qat_qconfig("x86")
    prepared = prepare_qat(model)
    prepared(image(2)).sum().backward()
    assert paths(prepared) == SITES
    assert all(parameter.grad is not None for parameter in prepared.parameters())


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
    with pytest.raises(NoMatchError, match="takes no site: this model has no block named 'basicblock'"):
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


def test_a_class_that_was_swapped_again_is_not_ejected():
    class Scaled(BasicBlock):
        def __init__(self, channels):
            super().__init__(channels)
            self.scale = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x):
            return self.scale * super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Scaled(8))
    attend(model, "after scaled.conv2")
    parametrize.register_parametrization(model[1], "scale", nn.Softplus())
    with pytest.raises(ModelError, match=r"class of a Scaled was changed again .* ParametrizedScaled"):
        eject(model)
    assert len(injected(model)) == 1
    parametrize.remove_parametrizations(model[1], "scale")
    eject(model)
    assert injected(model) == ()
