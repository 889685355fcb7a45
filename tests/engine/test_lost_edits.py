"""An edit that a later tool takes out is an error at the next forward, or still right: faults C1 to C5, C7, by kind.

`survives`: other tools hand modules on, and the attention goes with them. `raises`: they fold or replace the attended
module, and the next forward says which site was lost.
"""

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from simam_inject import InjectError, SimAM, bypass, eject, inject, injected, verify
from simam_inject.persist import load, save
from tests.oracle import E_LAMBDA, assert_attended, assert_right, attend, distance, hooked, same_bits


def image(side=32, batch=2, seed=1):
    return torch.randn((batch, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(model, x=None):
    with torch.no_grad():
        return model(image() if x is None else x)


def with_statistics(model):
    """Float64, with norm statistics that matter."""
    noise = torch.Generator().manual_seed(7)
    model.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low in ((module.running_mean, -0.3), (module.running_var, 0.5), (module.weight, 0.6)):
                    tensor.copy_(torch.rand(tensor.shape, generator=noise, dtype=tensor.dtype) * 0.8 + low)
    return model.eval()


def resnet18():
    import torchvision

    torch.manual_seed(3)
    return with_statistics(torchvision.models.resnet18())


class ConvBlock(nn.Module):
    def __init__(self, before=8, after=8):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Folding(ConvBlock):
    """Like RepVGG and its kin: `fold` puts the norm into the convolution."""

    def fold(self):
        self.conv = nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.bn)
        self.bn = nn.Identity()


class Net(nn.Module):
    def __init__(self, kind=ConvBlock):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), kind(), kind()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


def small(kind=ConvBlock):
    torch.manual_seed(3)
    return with_statistics(Net(kind))


def recipe(*paths):
    return {"e_lambda": E_LAMBDA, "rules": [{"path": path, "after": "output"} for path in paths]}


def every_conv(model):
    return [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]


EVERY_CONV = {"e_lambda": E_LAMBDA, "rules": [{"path": "*", "after": {"op": "conv2d"}}]}


# C1, reparameterisation and folding


def test_timm_reparameterisation_raises():
    import timm
    from timm.utils import reparameterize_model

    torch.manual_seed(3)
    model = with_statistics(timm.create_model("mobileone_s0", num_classes=4))
    inject(model, "mobile", example_inputs=image(64), verify=False)
    assert len(injected(model)) == 84
    notes = {insertion.note for insertion in injected(model)}
    assert any("stages.0.0.reparameterize() would remove this SimAM" in note for note in notes), notes
    plain = copy.deepcopy(model)
    with pytest.raises(InjectError, match=r"stages\.\d"):
        run(reparameterize_model(model), image(64))
    eject(plain)
    run(reparameterize_model(plain), image(64))


def fold(net):
    net.one.fold()
    return net


def fuse_by_hand(net):
    net.one.conv = nn.utils.fusion.fuse_conv_bn_eval(net.one.conv, net.one.bn)
    net.one.bn = nn.Identity()
    return net


def fuse_in_place(net):
    """Folds into the parameters of the convolution itself, as many own scripts do."""
    conv, bn = net.one.conv, net.one.bn
    with torch.no_grad():
        gain = bn.weight / (bn.running_var + bn.eps).sqrt()
        conv.weight.mul_(gain[:, None, None, None])
        conv.bias.copy_((conv.bias - bn.running_mean) * gain + bn.bias)
    net.one.bn = nn.Identity()
    return net


def fuse_modules(net):
    torch.ao.quantization.fuse_modules(net, [["one.conv", "one.bn", "one.act"]], inplace=True)
    return net


def fuse_pair(net):
    torch.ao.quantization.fuse_modules(net, [["one.conv", "one.bn"]], inplace=True)
    return net


def replace_by_setattr(net):
    net.one.conv = nn.Conv2d(8, 8, 3, padding=1).double()
    return net


def replace_block(net):
    net.one = ConvBlock().double().eval()
    return net


def replace_by_identity(net):
    net.one.conv = nn.Identity()
    return net


def delete_child(net):
    del net.one.conv.simam
    return net


LOSING = [fold, fuse_by_hand, fuse_in_place, fuse_modules, fuse_pair, replace_by_setattr, replace_block,
          replace_by_identity, delete_child]  # fmt: skip


@pytest.mark.parametrize("lose", LOSING)
def test_what_folds_or_replaces_the_attended_module_raises_again_and_again(lose):
    model = inject(small(Folding), recipe("one.conv", "two.conv"), example_inputs=image())
    run(model)
    lost = lose(model)
    for each in (lost, lost, copy.deepcopy(lost)):
        with pytest.raises(InjectError, match=r"one\.conv"):
            run(each)


@pytest.mark.parametrize("lose", [lose for lose in LOSING if lose is not delete_child])
def test_the_same_tool_after_eject_is_as_on_the_stock_model(lose):
    stock = small(Folding)
    model = eject(inject(copy.deepcopy(stock), recipe("one.conv", "two.conv"), example_inputs=image()))
    torch.manual_seed(5)
    expected = run(lose(stock))
    torch.manual_seed(5)
    assert same_bits(run(lose(model)), expected)


@pytest.mark.parametrize("lose", [fold, fuse_by_hand, fuse_in_place, fuse_modules, fuse_pair])
def test_folding_inside_an_attended_block_keeps_the_attention(lose):
    stock = small(Folding)
    model = inject(copy.deepcopy(stock), recipe("one", "two"), example_inputs=image())
    assert_attended(run(lose(model)), stock, ["one", "two"], image())


def test_torch_fx_fusing_of_an_injected_model_raises_or_is_right():
    """The copy that folding makes of a convolution keeps its hook, which sees that it has a bias now."""
    from torch.fx.experimental.optimization import fuse

    class Biasless(Net):
        def __init__(self):
            super().__init__()
            self.one.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    torch.manual_seed(3)
    stock = with_statistics(Biasless())
    model = inject(copy.deepcopy(stock), recipe("one.conv"), example_inputs=image())
    with hooked(stock, ["one.conv"]):
        expected = run(stock)
    try:
        found = run(fuse(model))
    except InjectError as error:
        message = str(error)
    else:
        assert_right(found, expected, run(stock))
        return
    assert "one.conv" in message


# Hooks alone are gone, the SimAM is still there


def convert_to_sync(net):
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def clear_hooks(net):
    for module in net.modules():
        if module is not net:
            module._forward_hooks.clear()
    return net


def clear_one(net):
    net.one.bn._forward_hooks.clear()
    return net


def back_from_sync(net):
    """To SyncBatchNorm and back, as exporters do."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.SyncBatchNorm):
            norm = nn.BatchNorm2d(module.num_features).double().eval()
            norm.load_state_dict(module.state_dict())
            for name, child in module.named_children():
                norm.add_module(name, child)
            net.get_submodule(path.rpartition(".")[0]).add_module(path.rpartition(".")[2], norm)
    return net


@pytest.mark.parametrize("lose", [convert_to_sync, clear_hooks, clear_one, back_from_sync])
def test_a_lost_hook_is_mended_with_one_warning(lose):
    stock = small()
    model = inject(copy.deepcopy(stock), recipe("one.bn", "two.bn"), example_inputs=image())
    plain = run(stock)
    with hooked(stock, ["one.bn", "two.bn"]):
        expected = run(stock)
    changed = lose(model)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = [run(changed), run(changed)]
    (warning,) = [warning for warning in warned if "SimAM" in str(warning.message) or "simam" in str(warning.message)]
    assert not warning.filename.startswith(str(Path(torch.__file__).parent))  # it points to the call of the model
    for each in found:
        assert_right(each, expected, plain)


# C2, C3: modules handed on one by one


def test_children_of_an_injected_resnet_in_a_sequential():
    stock = resnet18()
    model = inject(copy.deepcopy(stock), "every-conv", example_inputs=image(64), e_lambda=E_LAMBDA)
    assert [name for name, _ in model.named_children()] == [name for name, _ in stock.named_children()]
    ours, theirs = (nn.Sequential(*list(each.children())[:-2]) for each in (model, stock))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_like_hooks(ours, theirs, every_conv(theirs), image(64))


def test_intermediate_layer_getter():
    from torchvision.models._utils import IntermediateLayerGetter

    stock = resnet18()
    model = inject(copy.deepcopy(stock), "block-output", example_inputs=image(64), e_lambda=E_LAMBDA)
    layers = {"layer1": "low", "layer3": "high"}
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1)]
    assert_like_hooks(IntermediateLayerGetter(model, layers), IntermediateLayerGetter(stock, layers), blocks, image(64))


def test_the_fpn_builder_of_torchvision():
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

    stock = resnet18()
    model = inject(copy.deepcopy(stock), "every-conv", example_inputs=image(64), e_lambda=E_LAMBDA)
    torch.manual_seed(2)
    theirs = _resnet_fpn_extractor(stock, 5).double().eval()
    torch.manual_seed(2)
    ours = _resnet_fpn_extractor(model, 5).double().eval()
    convolutions = [path for path in every_conv(theirs) if path.startswith("body.")]
    assert len(convolutions) == 20
    assert_like_hooks(ours, theirs, convolutions, image(64))


def test_the_first_layers_of_a_vgg():
    from torchvision.models.vgg import VGG, make_layers

    class Slim(VGG):
        def __init__(self):
            nn.Module.__init__(self)
            self.features = make_layers([8, "M", 16, "M", 32, 32, "M"])

        def forward(self, x):
            return self.features(x)

    torch.manual_seed(3)
    stock = with_statistics(Slim())
    model = inject(copy.deepcopy(stock), "every-conv", example_inputs=image(64), e_lambda=E_LAMBDA)

    def first(net):
        part = nn.Sequential()
        for layer in list(net.features.children())[:8]:
            part.append(layer)
        return part

    assert_like_hooks(first(model), first(stock), ["0", "3", "6"], image(64))
    assert_like_hooks(model.features[:4], stock.features[:4], ["0", "3"], image(64))


def test_fx_feature_extraction_of_torchvision():
    from torchvision.models.feature_extraction import create_feature_extractor

    stock = resnet18()
    model = inject(copy.deepcopy(stock), "block-output", example_inputs=image(64), e_lambda=E_LAMBDA)
    nodes = {"layer1.1.conv2": "inner", "layer2": "low", "flatten": "flat"}
    ours, theirs = create_feature_extractor(model, nodes), create_feature_extractor(stock, nodes)
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
    plain, found = run(theirs, image(64)), run(ours, image(64))
    with hooked(stock, blocks):
        expected = [run(stock.layer1, stem(stock)), run(stock.layer2, run(stock.layer1, stem(stock)))]
    assert distance(expected[1], plain["low"]) > 1e-4
    assert distance(found["low"], expected[1]) < 1e-8


def stem(net):
    return run(nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool), image(64))


def assert_like_hooks(ours, theirs, places, x):
    assert_attended(run(ours, x), theirs, places, x)
    with bypass(ours):
        assert same_bits(run(ours, x), run(theirs, x))


# C4: tools that ask for the exact class


def test_fuse_model_of_torchvisions_quantizable_resnet():
    import torchvision

    def build():
        torch.manual_seed(3)
        return with_statistics(torchvision.models.quantization.resnet18(weights=None, quantize=False))

    stock, model = build(), build()
    inject(model, "block-output", example_inputs=image(64), e_lambda=E_LAMBDA)
    plain = run(stock, image(64))
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
    with hooked(stock, blocks):
        expected = run(stock, image(64))
    for net in (stock, model):
        net.fuse_model(is_qat=False)
    assert count(model, nn.BatchNorm2d) == count(stock, nn.BatchNorm2d) == 0
    assert count(model, SimAM) == 8
    assert_right(run(model, image(64)), expected, plain)


@pytest.mark.parametrize("recipe_name", ["block-output", "residual"])
def test_fuse_model_for_training_finds_every_pair(recipe_name):
    import torchvision

    stock = torchvision.models.quantization.resnet18(weights=None, quantize=False)
    model = inject(copy.deepcopy(stock).double(), recipe_name, example_inputs=image(64), verify=False)
    for net in (stock, model):
        net.train().fuse_model(is_qat=True)
    names = [
        sorted(type(each).__name__ for each in net.modules() if not isinstance(each, SimAM)) for net in (stock, model)
    ]
    assert names[0] == names[1]


def test_fuse_model_across_the_authors_place_raises():
    import torchvision

    model = with_statistics(torchvision.models.quantization.resnet18(weights=None, quantize=False))
    inject(model, "paper", example_inputs=image(64), verify=False)
    model.fuse_model(is_qat=False)
    with pytest.raises(InjectError, match=r"layer1\.0\.conv2"):
        run(model, image(64))


def count(model, kind):
    return sum(type(module) is kind for module in model.modules())


def test_classes_and_forwards_of_modules_stay():
    stock = resnet18()
    model = inject(copy.deepcopy(stock), "every-conv", example_inputs=image(64), verify=False)
    for path, module in stock.named_modules():
        assert type(model.get_submodule(path)) is type(module)
        assert model.get_submodule(path).forward.__func__ is module.forward.__func__


# C7: compiled first


def compiled_whole(net, backend):
    compiled = torch.compile(net, backend=backend)
    return net, compiled


def compiled_in_place(net, backend):
    net.compile(backend=backend)
    return net, net


def compiled_child(net, backend):
    net.one.compile(backend=backend)
    return net, net


def compiled_function(net, backend):
    return net, torch.compile(lambda x: net(x) * 1.0, backend=backend)


def test_a_compiled_wrapper_is_refused_with_the_order_that_works(eager_backend):
    compiled = torch.compile(small(), backend=eager_backend)
    with pytest.raises(InjectError, match="inject first, then wrap"):
        inject(compiled, "after convblock", example_inputs=image())


@pytest.mark.parametrize("compiling", [compiled_whole, compiled_in_place, compiled_child, compiled_function])
def test_a_model_compiled_before_does_not_stay_plain(compiling, eager_backend):
    stock = small()
    target, callable_ = compiling(copy.deepcopy(stock), eager_backend)
    plain = run(stock)
    assert distance(run(callable_), plain) < 1e-8
    pattern = {"e_lambda": E_LAMBDA, "rules": [{"block": "ConvBlock", "after": "output"}]}
    inject(target, pattern, example_inputs=image())
    with hooked(stock, ["one", "two"]):
        expected = run(stock)
    assert_right(run(callable_), expected, plain)
    with bypass(target):
        assert distance(run(callable_), plain) < 1e-8
    assert_right(run(callable_), expected, plain)
    eject(target)
    assert distance(run(callable_), plain) < 1e-8


def test_a_lost_edit_raises_in_a_compiled_model_too(eager_backend):
    model = inject(small(Folding), recipe("one.conv", "two.conv"), example_inputs=image())
    compiled = torch.compile(model, backend=eager_backend)
    run(compiled)
    model.one.fold()
    with pytest.raises(InjectError, match=r"one\.conv"):
        run(compiled)


# A holder that is only kept somewhere, and children that are moved


class WithTail(Net):
    def __init__(self):
        super().__init__()
        self.tail = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.head(self.tail(self.one(self.stem(x))).mean((2, 3)))


def keep(net, name, path):
    """Put a fresh module in the place of one, which is kept as `name`."""
    owner = net.get_submodule(path.rpartition(".")[0])
    old = net.get_submodule(path)
    fresh = ConvBlock() if isinstance(old, ConvBlock) else nn.Conv2d(8, 8, 3, padding=1)
    owner.add_module(path.rpartition(".")[2], fresh.double().eval())
    net.add_module(name, old)
    return net


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x


def keep_in_module(net):
    old = net.tail
    net.tail = nn.Conv2d(8, 8, 3, padding=1).double()
    net.teacher = Holder(old)
    return net


def keep_in_list(net):
    old = net.one
    net.one = ConvBlock().double().eval()
    net.blocks = nn.ModuleList([old])
    return net


@pytest.mark.parametrize(
    ("site", "lose"),
    [
        ("tail", lambda net: keep(net, "old", "tail")),
        ("one", lambda net: keep(net, "teacher", "one")),
        ("one.conv", lambda net: keep(net, "backup", "one.conv")),
        ("one.conv", lambda net: keep(net, "ema", "one")),
        ("tail", keep_in_module),
        ("one", keep_in_list),
    ],
)
def test_a_holder_that_is_kept_beside_its_replacement_raises(site, lose):
    torch.manual_seed(3)
    model = inject(with_statistics(WithTail()), recipe(site), example_inputs=image())
    run(model)
    with pytest.raises(InjectError, match=site.replace(".", r"\.")):
        run(lose(model))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        return self.body(x) * 2


def wrap_body(net):
    net.body = nn.Sequential(net.body)
    return net


def insert_first(net):
    net.body.insert(0, nn.Identity())
    return net


def wrap_layer(net):
    net.body[0] = nn.Sequential(net.body[0], nn.Identity())
    return net


def parallel(net):
    net.body[0] = nn.ModuleDict({"own": net.body[0]})["own"]
    return net


MOVES = {"insert": (insert_first, "body.1"), "wrap": (wrap_layer, "body.0.0"), "same": (parallel, "body.0"),
         "wrap all": (wrap_body, "body.0.0")}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_a_holder_that_is_moved_or_wrapped_is_followed_and_its_norm_too(name):
    move, path = MOVES[name]
    torch.manual_seed(3)
    stock = with_statistics(Body())
    model = inject(copy.deepcopy(stock), recipe("body.0"), example_inputs=image())
    assert_attended(run(move(model)), stock, ["body.0"], image())
    assert [insertion.module.removesuffix(".simam") for insertion in injected(model)] == [path]
    with torch.no_grad():
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        owner = next(module for module in model.modules() if norm in module._modules.values())
        name = next(key for key, child in owner.named_children() if child is norm)
    owner.add_module(name, nn.Identity())  # folded into the convolution
    with pytest.raises(InjectError, match=r"body\.0"):
        run(model)


class Scaled(nn.Module):
    """With a value that only an expression of its forward is."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = self.one(x) * 2.0
        return self.two(y) + y


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def compiled(part):
    return torch.compile(part, backend="eager")


WRAPPERS = {
    "compiled": (lambda net: net.__setitem__(1, compiled(net[1])), "1._orig_mod"),
    "wrapped": (lambda net: net.__setitem__(1, Around(net[1])), "1.inner"),
    "moved": (lambda net: net.insert(0, nn.Identity()), "2"),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_sites_of_a_block_that_is_wrapped_or_moved_are_listed_once_and_verified(name, tmp_path):
    wrap, path = WRAPPERS[name]
    stock = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Scaled(), nn.Conv2d(3, 3, 3, padding=1)).double().eval()
    model = inject(copy.deepcopy(stock), recipe("1.mul", "1.two"), example_inputs=image())
    before, plain = run(model), run(stock)
    wrap(model)
    assert [site.path for site in injected(model)] == [f"{path}.mul", f"{path}.two"]
    assert_right(run(model), before, plain)
    found = verify(model, example_inputs=image())
    assert found.ok, found
    wrap(stock)
    assert_right(run(load(save(model, tmp_path / "net.safetensors"), stock)), before, plain)
    eject(model)
    assert distance(run(model), plain) < 1e-8


class Ends(nn.Module):
    def __init__(self, kind=nn.Sequential):
        super().__init__()
        self.body = kind(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x):
        return self.body(x) * 2


def replace_last(net):
    net.body[2] = nn.Conv2d(8, 8, 1).double()


def delete_last(net):
    del net.body[2]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.body.append(nn.Tanh()),
        lambda net: net.body.add_module("end", nn.Tanh()),
        lambda net: net.body.extend([nn.Tanh()]),
        lambda net: net.body.insert(3, nn.Tanh()),
        replace_last,
        delete_last,
    ],
    ids=["append", "add_module", "extend", "insert", "replace", "delete"],
)
def test_the_output_of_a_container_is_what_its_last_child_returns(change, copied):
    torch.manual_seed(3)
    model = inject(with_statistics(Ends()), recipe("body"), example_inputs=image())
    model = copy.deepcopy(model) if copied else model
    run(model)
    change(model)
    with pytest.raises(InjectError, match="body"):
        run(model)


def test_children_before_the_last_may_change():
    torch.manual_seed(3)
    stock = with_statistics(Ends())
    model = inject(copy.deepcopy(stock), recipe("body"), example_inputs=image())
    for net in (stock, model):
        net.body.insert(1, nn.Tanh())
    assert_attended(run(model), stock, ["body"], image())


class EndsInAnother(nn.Module):
    """The output of `body` is that of `body.1.1`, and its input that of `body.0`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        )

    def forward(self, x):
        return self.body(self.stem(x)) * 2


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ({"after": "output"}, lambda net: net.body.append(nn.Tanh())),
        ({"after": "output"}, lambda net: net.body[-1].append(nn.Tanh())),
        ({"before": "input"}, lambda net: net.body.insert(0, nn.Tanh())),
    ],
)
def test_both_ends_of_containers(rule, change, copied):
    torch.manual_seed(3)
    stock = with_statistics(EndsInAnother())
    model = inject(copy.deepcopy(stock), {"rules": [{"path": "body", **rule}]}, example_inputs=image())
    model = copy.deepcopy(model) if copied else model
    model.body.insert(1, nn.Tanh())
    run(model)  # that is between the ends
    change(model)
    with pytest.raises(InjectError, match=r"the children of body have changed, so SimAM is no longer applied"):
        run(model)


# eject after a loss leaves nothing


class Op(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.c(x) * 2
        return self.d(y) + y


def other_forward(net):
    net.forward = lambda x: x
    return net


@pytest.mark.parametrize(
    ("factory", "site", "lose"),
    [
        (small, "one.conv", clear_hooks),
        (small, "one.bn", clear_one),
        (small, "one.bn", convert_to_sync),
        (lambda: with_statistics(Op()), "mul", other_forward),
        (small, "one", clear_hooks),
    ],
)
def test_eject_after_a_loss_takes_every_simam(factory, site, lose):
    model = lose(inject(factory(), recipe(site), example_inputs=image()))
    eject(model)
    assert [name for name, module in model.named_modules() if isinstance(module, SimAM)] == []
    assert injected(model) == ()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


# What stands on classes and copies


@pytest.mark.parametrize("change", ["lambda", "method", "subclass"])
def test_a_class_whose_method_is_replaced_after_inject_raises(change):
    class Own(Op):
        def forward(self, x):
            y = self.c(x) * 2
            return self.d(y) + y

    class Inner(Own):
        pass

    kind = Inner if change == "subclass" else Own
    model = inject(with_statistics(kind()), recipe("mul"), example_inputs=image())
    run(model)
    if change == "lambda":
        Own.forward = lambda self, x: self.c(x) * 0
    else:
        Own.forward = Op.forward
    with pytest.raises(InjectError, match="forward was replaced after SimAM"):
        run(model)


@pytest.mark.parametrize("part", ["root", "inner", "deep"])
def test_a_shallow_copy_runs_its_own_forward_or_raises(part):
    """As DataParallel's replicas are made."""

    class Scales(Op):
        gain = 2.0

        def forward(self, x):
            y = self.c(x) * self.gain
            return self.d(y) + y

    stock = with_statistics(Scales() if part == "root" else nn.Sequential(Scales()))
    model = inject(copy.deepcopy(stock), recipe("mul" if part == "root" else "0.mul"), example_inputs=image())
    twin = copy.deepcopy(model) if part == "deep" else copy.copy(model)
    if part == "root":
        with pytest.raises(InjectError, match="a shallow copy of this model"):
            run(twin)
    else:
        twin._modules = dict(twin._modules)
        twin._modules["0"] = copy.copy(twin._modules["0"])
        twin._modules["0"].gain = 3.0
        other = copy.deepcopy(stock)
        other[0].gain = 3.0
        y = attend(run(other[0].c) * 3)
        assert distance(run(twin), run(other[0].d, y) + y) < 1e-8
    run(model)


GRAPHS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda graph: pickle.loads(pickle.dumps(graph)),
    "twice": lambda graph: copy.deepcopy(copy.deepcopy(graph)),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("site", ["mul", "c", "d"])
def test_a_graph_module_keeps_its_sites_in_copies_or_is_refused(site, name):
    stock = torch.fx.symbolic_trace(with_statistics(Op()))
    model = copy.deepcopy(stock)
    try:
        inject(model, recipe(site), example_inputs=image())
    except InjectError:
        assert injected(model) == ()
        return
    assert len(injected(GRAPHS[name](model))) == 1
    assert distance(run(GRAPHS[name](model)), run(model)) < 1e-12


class Chunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x):
        return self.c(x).chunk(2, 1)


class ReadsChunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, z):
        return self.t(z[0]) + z[1]


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.k, self.r = Chunks(), ReadsChunks()

    def forward(self, x):
        return self.r(self.k(x))


@pytest.mark.parametrize("rule", [{"path": "k", "after": "output"}, {"path": "r", "before": "input"}])
def test_fx_tracing_of_a_list_is_right_or_says_what_to_do(rule):
    model = inject(with_statistics(Lists()), {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=image())
    try:
        traced = torch.fx.symbolic_trace(model)
    except InjectError as error:
        message = str(error)
    else:
        assert distance(run(traced), run(model)) < 1e-12
        return
    assert "trace it first, then inject" in message
