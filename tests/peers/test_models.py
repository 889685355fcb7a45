"""What timm's and torchvision's own test suites do with every model, done with injected ones.

Written anew; each test is named after what the suite calls it. `bypass` gives the stock model bit for bit throughout.
"""

import copy
import io

import pytest
import torch
from torch import nn

from simam_inject import bypass, inject, injected, verify
from tests.oracle import distance, hooked, same_bits
from tests.peers.models import PLACES, image, injected_of, stock_of

TIMM = [key for key in PLACES if key.startswith("timm:")]
everywhere = pytest.mark.parametrize("key", PLACES)
in_timm = pytest.mark.parametrize("key", TIMM)
NEAR = 3e-5
"""In float32, of a whole network: rounding of another order of operations stays well below, attention well above."""


def run(call, *args):
    torch.manual_seed(1)
    with torch.no_grad():
        return call(*args)


def places(model):
    return {insertion.path: insertion.channel_dim for insertion in injected(model)}


def assert_like_hooks(model, stock, sites, call=lambda net: net, x=None):
    """`call` of the injected model is that of the stock one with hooks, and bypassed that of the stock one."""
    x = image() if x is None else x
    plain = run(call(stock), x)
    with hooked(stock, sites):
        expected = run(call(stock), x)
    found = run(call(model), x)
    assert distance(found, expected) < NEAR
    assert distance(expected, plain) > 10 * NEAR
    with bypass(model):
        assert same_bits(run(call(model), x), plain)


@everywhere
def test_model_forward(key):
    model = injected_of(key)
    for batch, side in ((1, 64), (3, 96)):
        output = run(model, image(batch, side))
        assert output.shape == (batch, 10)
        assert not torch.isnan(output).any()
    assert_like_hooks(model, stock_of(key), places(model))


@everywhere
def test_model_backward(key):
    model, stock = injected_of(key).train(), stock_of(key).train()
    for net in (model, stock):
        net(image()).mean().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == [name for name, parameter in stock.named_parameters() if parameter.grad is None]
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    assert [each.shape for each in model.parameters()] == [each.shape for each in stock.parameters()]


@in_timm
def test_model_default_cfgs_reset_classifier(key):
    model, stock = injected_of(key), stock_of(key)
    sites = places(model)
    for net in (model, stock):
        net.reset_classifier(0)
    assert run(model, image()).shape[1:] == (model.num_features,)
    assert_like_hooks(model, stock, sites)
    assert_like_hooks(model, stock, sites, lambda net: net.forward_features)
    torch.manual_seed(4)
    model.reset_classifier(7)
    torch.manual_seed(4)
    stock.reset_classifier(7)
    assert run(model, image()).shape == (2, 7)
    assert_like_hooks(model, stock, sites)
    assert places(model) == sites


@in_timm
def test_model_features_and_head(key):
    model, stock = injected_of(key), stock_of(key)
    sites = places(model)
    assert_like_hooks(model, stock, sites, lambda net: net.forward_features)
    features = run(model.forward_features, image())
    assert distance(run(model.forward_head, features), run(model, image())) < 1e-6
    assert run(lambda x: model.forward_head(x, pre_logits=True), features).shape == (2, model.num_features)


@in_timm
def test_model_forward_intermediates(key):
    model, stock = injected_of(key), stock_of(key)
    sites = places(model)
    assert_like_hooks(model, stock, sites, lambda net: lambda x: net.forward_intermediates(x, intermediates_only=True))
    final, maps = run(model.forward_intermediates, image())
    assert [each.shape for each in maps] == [each.shape for each in run(stock.forward_intermediates, image())[1]]
    assert distance(final, run(model.forward_features, image())) < 1e-6


@in_timm
def test_model_forward_features_only(key):
    """`features_only` wraps the layers of a model: injected, it is attended as any other."""
    import timm

    name = key.removeprefix("timm:")
    torch.manual_seed(3)
    stock = timm.create_model(name, features_only=True).eval()
    model = inject(copy.deepcopy(stock), "every-conv", example_inputs=image(), verify=False)
    assert [tuple(each.shape) for each in run(model, image())] == [tuple(each.shape) for each in run(stock, image())]
    assert distance(run(model, image()), run(stock, image())) > 10 * NEAR
    with bypass(model):
        assert same_bits(run(model, image()), run(stock, image()))


@in_timm
def test_model_grad_checkpointing_after_inject(key):
    """Switched on after the injection, and off again: same outputs, same gradients."""
    model = injected_of(key).train()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    gradients = []
    for enable in (False, True, False):
        model.set_grad_checkpointing(enable)
        twin = copy.deepcopy(model)
        torch.manual_seed(2)
        output = twin(image())
        output.square().mean().backward()
        gradients.append((output.detach(), [p.grad for p in twin.parameters() if p.grad is not None]))
    for output, found in gradients[1:]:
        assert distance(output, gradients[0][0]) < 1e-6
        assert distance(found, gradients[0][1]) < 1e-3
    assert verify(model.eval(), example_inputs=image()).ok


@everywhere
def test_model_forward_fx(key):
    """Feature extraction by torch.fx, as both suites do."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model, stock = injected_of(key), stock_of(key)
    names = {}
    for mode, net in (("model", model), ("stock", stock)):
        names[mode] = get_graph_node_names(net)[1]
    last = names["stock"][-1]
    assert last in names["model"]
    ours = create_feature_extractor(model, [last])
    assert distance(run(ours, image())[last], run(model, image())) < NEAR
    theirs = create_feature_extractor(stock, [last])
    assert distance(run(ours, image())[last], run(theirs, image())[last]) > 10 * NEAR


@everywhere
def test_model_symbolic_trace(key):
    model = injected_of(key)
    traced = torch.fx.symbolic_trace(model)
    assert distance(run(traced, image(3)), run(model, image(3))) < NEAR


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ["torchvision:resnet18", "timm:convnext_atto"])
def test_model_forward_torchscript(key):
    """Tracing; scripting is not promised."""
    model = injected_of(key)
    traced = torch.jit.trace(model, image(), check_trace=False)
    assert distance(run(traced, image(2, 64, 5)), run(model, image(2, 64, 5))) < NEAR


@everywhere
def test_model_deepcopy_and_pickle(key):
    model = injected_of(key)
    expected = run(model, image())
    twin = copy.deepcopy(model)
    assert same_bits(run(twin, image()), expected)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert same_bits(run(model, image()), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert same_bits(run(torch.load(buffer, weights_only=False), image()), expected)


@everywhere
def test_model_load_save(key, tmp_path):
    """A state dict goes both ways between stock and injected, by torch.save and by safetensors."""
    from safetensors.torch import load_file, save_file

    model, other, stock = injected_of(key), injected_of(key), stock_of(key)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=True)
    assert same_bits(run(other, image()), run(model, image()))
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    stock.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    with bypass(model):
        assert same_bits(run(model, image()), run(stock, image()))
    assert_like_hooks(other, stock, places(model))


@in_timm
def test_timm_ema_and_checkpoint_helpers(key, tmp_path):
    from timm.utils import ModelEmaV3, unwrap_model

    model = injected_of(key)
    ema = ModelEmaV3(model, decay=0.5)
    ema.update(model)
    assert places(ema.module) == places(model)
    assert same_bits(run(ema.module.eval(), image()), run(model, image()))
    assert unwrap_model(nn.DataParallel(model)) is model


@everywhere
def test_model_half_and_channels_last(key):
    model = injected_of(key)
    expected = run(model, image())
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert distance(run(last, image().to(memory_format=torch.channels_last)), expected) < NEAR
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distance(run(model, image()), expected) < 0.1


@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvision_segmentation(name):
    import torchvision

    torch.manual_seed(3)
    stock = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4).eval()
    model = inject(copy.deepcopy(stock), "stage-end", example_inputs=image(), e_lambda=0.03, verify=False)
    assert_like_hooks(model, stock, places(model))
    assert list(run(model, image())) == list(run(stock, image()))


def test_torchvision_detection_in_both_modes():
    """Lists of images of two sizes; losses in train mode, boxes in eval mode."""
    import torchvision

    torch.manual_seed(3)
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    stock = build(weights=None, weights_backbone=None, num_classes=3).eval()
    images = [torch.rand(3, 80, 64, generator=torch.Generator().manual_seed(1)), torch.rand(3, 64, 96)]
    model = inject(copy.deepcopy(stock), "mobile", example_inputs=(images,), e_lambda=0.03, verify=False)
    with bypass(model):
        assert same_bits(run(model, images), run(stock, images))
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])} for _ in images]
    stock.train()
    model.train()
    with hooked(stock, places(model)):
        expected = run(stock, images, targets)
    found = run(model, images, targets)
    assert set(found) == set(expected)
    assert distance(list(found.values()), list(expected.values())) < 1e-3
