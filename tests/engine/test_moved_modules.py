"""Fault C: the attention goes with modules that are handed on, moved or wrapped, or it is an error."""

import copy

import pytest
import torch
from torch import nn

from simam_inject import InjectError, SimAM, bypass, eject, inject, injected, verify
from simam_inject.persist import load, save
from tests.engine.networks import ConvBlock, Net, every_conv, image, recipe, resnet18, run, with_statistics
from tests.oracle import E_LAMBDA, assert_attended, assert_right, distance, hooked, same_bits


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


def unwrap_layer(net):
    run(wrap_layer(net))
    net.body[0] = net.body[0][0]
    return net


def unwrap_body(net):
    run(wrap_body(net))
    net.body = net.body[0]
    return net


def unwrap_compiled(net):
    net.body = torch.compile(net.body, backend="eager")
    run(net)
    net.body = net.body._orig_mod
    return net


MOVES = {"insert": (insert_first, "body.1"), "wrap": (wrap_layer, "body.0.0"), "same": (parallel, "body.0"),
         "wrap all": (wrap_body, "body.0.0"), "unwrap": (unwrap_layer, "body.0"),
         "unwrap all": (unwrap_body, "body.0"), "unwrap compiled": (unwrap_compiled, "body.0")}  # fmt: skip


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


def test_the_norm_of_a_moved_holder_is_not_taken_for_the_one_that_is_at_its_old_place():
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)]
    model = inject(with_statistics(nn.Sequential(*layers)), recipe("3"), example_inputs=image())
    for _ in range(3):
        model.insert(0, nn.Identity())
    run(model)
    model[7] = nn.Identity()  # folded into the convolution
    with pytest.raises(InjectError, match=r"the norm 7 was replaced"):
        run(model)


def test_a_holder_that_was_replaced_and_has_a_shorter_name_elsewhere_is_lost():
    model = nn.Sequential(Body(), nn.Conv2d(8, 3, 3)).double().eval()
    inject(model, recipe("0.body.0"), example_inputs=image())
    run(model)
    model[0].add_module("0", model[0].body[0])
    model[0].body[0] = nn.Conv2d(3, 8, 3, padding=1).double()
    with pytest.raises(InjectError, match=r"0\.body\.0 was replaced, removed, or lost its SimAM"):
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
    with pytest.raises(InjectError, match=r"the children of body have changed"):
        run(model)
