"""Containers hide the SimAM children from those who list, count, slice or index them; alternatives of forward."""

import copy
import pickle

import pytest
import torch
from torch import nn

from simam_inject import InjectError, SimAM, eject, inject, injected, simam, verify
from tests.engine.blocks import Block, conv
from tests.engine.oracle import distance, hooked, same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))
RULES = {"rules": [{"path": ["0", "2"], "after": "output"}]}


def sequential():
    torch.manual_seed(1)
    return nn.Sequential(conv(3, 4), nn.ReLU(), conv(), nn.BatchNorm2d(4)).eval()


def test_a_sequential_looks_as_before():
    plain, model = sequential(), inject(sequential(), RULES, example_inputs=X)
    with hooked(plain, ["0", "2"], 1e-4, simam):
        assert same_bits(model(X), plain(X))
    assert len(model) == 4
    assert [type(child) for child in model] == [type(child) for child in plain]
    assert [type(child) for child in reversed(model)] == [type(child) for child in reversed(plain)]
    assert type(model[-1]) is nn.BatchNorm2d
    assert type(model[1]) is nn.ReLU
    with pytest.raises(IndexError):
        model[4]
    assert isinstance(model, nn.Sequential)
    assert sum(isinstance(module, SimAM) for module in model.modules()) == 2


def test_a_slice_keeps_its_attentions():
    plain, model = sequential(), inject(sequential(), RULES, example_inputs=X)
    with hooked(plain, ["0", "2"], 1e-4, simam):
        for cut in (slice(0, 1), slice(0, 2), slice(None), slice(0, 3)):
            assert same_bits(model[cut](X), plain[cut](X)), cut
        assert same_bits(model[2:](model[:2](X)), plain(X))


def test_a_child_can_be_replaced():
    model = inject(sequential(), RULES, example_inputs=X)
    plain = sequential()
    model[1] = plain[1] = nn.Sigmoid()
    with hooked(plain, ["0", "2"], 1e-4, simam):
        assert same_bits(model(X), plain(X))
    assert len(model) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.append(nn.ReLU()),
        lambda model: model.insert(0, nn.ReLU()),
        lambda model: model.extend([nn.ReLU()]),
        lambda model: model.pop(0),
        lambda model: model.__delitem__(0),
        lambda model: model.__iadd__(nn.Sequential(nn.ReLU())),
        lambda model: model.__imul__(2),
    ],
)
def test_changing_a_rewritten_container_is_loud(change):
    model = inject(sequential(), RULES, example_inputs=X)
    expected = model(X)
    with pytest.raises(InjectError, match="eject"):
        change(model)
    assert same_bits(model(X), expected)
    change(eject(model))


class Iterates(nn.Module):
    """Lists, counts and slices its containers instead of calling them."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(3, 4), nn.ReLU(), conv())
        self.heads = nn.ModuleDict({"one": conv(), "two": conv()})

    def forward(self, x):
        for layer in self.features:
            x = layer(x)
        assert len(self.features) == 3
        return sum(head(x) for head in self.heads.values())


def test_who_iterates_is_rewritten_and_not_the_container():
    torch.manual_seed(1)
    plain = Iterates().eval()
    recipe = {"rules": [{"block": "iterates", "after": {"op": "conv2d"}}]}
    model = inject(copy.deepcopy(plain), recipe, example_inputs=X)
    paths = ["features.0", "features.2", "heads.one", "heads.two"]
    assert [insertion.path for insertion in injected(model)] == paths
    assert type(model.features) is nn.Sequential
    with hooked(plain, paths, 1e-4, simam):
        assert same_bits(model(X), plain(X))


class CallsAndSlices(nn.Module):
    """Calls a container, and parts of it: the parts must hold their attentions too."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(3, 4), nn.ReLU(), conv())

    def forward(self, x):
        return self.features(x) + self.features[:2](x)


def test_a_container_that_is_called_and_sliced():
    torch.manual_seed(1)
    plain = CallsAndSlices().eval()
    model = inject(copy.deepcopy(plain), {"rules": [{"path": "features.2", "after": "output"}]}, example_inputs=X)
    with hooked(plain, ["features.2"], 1e-4, simam):
        assert same_bits(model(X), plain(X))


def test_children_of_a_sequential_subclass_with_its_own_forward():
    class Stage(nn.Sequential):
        def forward(self, x):
            for index, layer in enumerate(self):
                x = layer(x) + (x if index else 0)
            return x

    torch.manual_seed(1)
    plain = Stage(conv(3, 4), conv(), conv()).eval()
    model = inject(copy.deepcopy(plain), {"rules": [{"path": ["0", "1"], "after": "output"}]}, example_inputs=X)
    with hooked(plain, ["0", "1"], 1e-4, simam):
        assert same_bits(model(X), plain(X))
    assert len(model) == 3


def test_named_children_and_modules_show_simam():
    model = inject(sequential(), RULES, example_inputs=X)
    names = [name for name, _ in model.named_children()]
    assert names[:4] == ["0", "1", "2", "3"]
    assert sum(isinstance(child, SimAM) for child in model.children()) == 2
    assert "SimAM(e_lambda=0.0001)" in repr(model)
    eject(model)
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3"]


class ConvNorm(nn.Module):
    """conv, norm, activation, with a forward for after the norm was folded into the conv."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = conv(3, 4, bias=True), nn.BatchNorm2d(4), nn.SiLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))

    def fold(self):
        self.conv = torch.nn.utils.fuse_conv_bn_eval(self.conv, self.norm)
        del self.norm
        self.forward = self.forward_fuse
        return self


def conv_norm():
    torch.manual_seed(1)
    model = ConvNorm().eval()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-0.5, 0.5)
        model.norm.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("site", ["norm", "act", "output"])
def test_a_site_behind_the_norm_survives_folding(site):
    plain, model = conv_norm(), inject(conv_norm(), f"after convnorm.{site}", example_inputs=X)
    with hooked(plain, ["" if site == "output" else site], 1e-4, simam):
        expected = plain(X)
    assert same_bits(model(X), expected)
    assert distance(model.fold()(X), expected) < 1e-5
    assert distance(conv_norm().fold()(X), expected) > 1e-2
    assert isinstance(eject(model), ConvNorm)
    assert distance(model(X), conv_norm()(X)) < 1e-5


def test_a_site_between_conv_and_norm_refuses_folding():
    model = inject(conv_norm(), "after convnorm.conv", example_inputs=X)
    assert "forward_fuse" in injected(model)[0].note
    assert verify(model, example_inputs=X).ok
    expected = model(X)
    with pytest.raises(InjectError, match=r"forward_fuse cannot run with SimAM in it.*norm.*eject"):
        model.forward_fuse(X)
    assert same_bits(model(X), expected)


class Splits(Block):
    """The same computation written twice, as ultralytics' C2f has it for exporters."""

    def forward(self, x):
        parts = list(self.a(x).chunk(2, 1))
        return self.b(torch.cat(parts, 1))

    def forward_split(self, x):
        y = self.a(x).split((2, 2), 1)
        return self.b(torch.cat([y[0], y[1]], 1))

    def forward_untraceable(self, x):
        y = self.a(x)
        return self.b(y) if y.mean() > 0 else y

    def forward_with_more(self, x, extra):
        return self.b(self.a(x)) + extra


def test_alternatives_are_rewritten_or_refused():
    torch.manual_seed(1)
    plain = Splits().eval()
    x = torch.rand(2, 4, 8, 8)
    model = inject(copy.deepcopy(plain), "after splits.a", example_inputs=x)
    with hooked(plain, ["a"], 1e-4, simam):
        assert same_bits(model(x), plain(x))
        assert same_bits(model.forward_split(x), plain.forward_split(x))
    with pytest.raises(InjectError, match="branches on a tensor's content"):
        model.forward_untraceable(x)
    model.forward = model.forward_split
    with hooked(plain, ["a"], 1e-4, simam):
        assert same_bits(model(x), plain(x))


def test_a_block_output_is_attended_in_every_alternative():
    torch.manual_seed(1)
    plain = Splits().eval()
    x = torch.rand(2, 4, 8, 8)
    model = inject(copy.deepcopy(plain), "after splits", example_inputs=x)
    for name in ("forward", "forward_split", "forward_untraceable"):
        assert same_bits(getattr(model, name)(x), simam(getattr(plain, name)(x))), name


class Chooses(Splits):
    """Its forward calls one of the others, as a transformer layer that normalises before or after."""

    def forward(self, x):
        return self.forward_split(x)


class Flips(Chooses):
    """Calls what it overrides, and what that calls it does not name itself: RT-DETR's AIFI."""

    def forward(self, x):
        return super().forward(x.flip(3)).flip(3)


class NamesItsBase(Chooses):
    def forward(self, x):
        return Chooses.forward(self, x.flip(3)).flip(3)


@pytest.mark.parametrize("block", [Chooses, Flips, NamesItsBase])
def test_what_forward_calls_through_its_base_is_no_alternative(block):
    torch.manual_seed(1)
    plain = block().eval()
    x = torch.rand(2, 4, 8, 8)
    model = inject(copy.deepcopy(plain), f"after {block.__name__.lower()}", example_inputs=x)
    assert same_bits(model(x), simam(plain(x)))


class DictBlock(nn.ModuleDict):
    """Runs its children by name, as DenseNet's blocks do."""

    def forward(self, x):
        for name, child in self.items():
            x = x + child(x) if name else x
        return x


class ListBlock(nn.ModuleList):
    """Runs its children in order."""

    def forward(self, x):
        for child in self:
            x = x + child(x)
        return x


@pytest.mark.parametrize("kind", [DictBlock, ListBlock])
def test_a_list_or_dict_of_modules_with_a_forward_of_its_own(kind):
    children = {"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 3, padding=1)}
    block = kind(children if kind is DictBlock else children.values())
    model = nn.Sequential(block)
    x = torch.rand(2, 4, 6, 6)
    plain = model(x)
    names = [name for name, _ in block.named_children()]
    inject(model, f"after {kind.__name__}", example_inputs=x)
    assert [site.path for site in injected(model)] == ["0"]
    torch.testing.assert_close(model(x), simam(plain), rtol=1e-6, atol=1e-6)
    assert len(block) == 2
    assert list(block) == (names if kind is DictBlock else list(children.values()))
    assert not (model(x) - plain).abs().max() < 0.01
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x))
    with pytest.raises(InjectError, match="change the container"):
        block.pop("a" if kind is DictBlock else 0)
    eject(model)
    assert torch.equal(model(x), plain)


def test_the_mapping_of_a_dict_hides_the_attention():
    block = DictBlock({"a": nn.Conv2d(4, 4, 1)})
    inject(block, "after dictblock", example_inputs=torch.rand(1, 4, 6, 6))
    assert list(block.keys()) == ["a"]
    assert list(block.values()) == [block["a"]]
    assert [name for name, _ in block.items()] == ["a"]
    assert "simam_output" not in block
    assert "simam_output" in dict(block.named_modules())


class Reversed(nn.Sequential):
    """A container with a protocol of its own."""

    def __init__(self, *children):
        super().__init__(*children)
        self.log = []

    def __iter__(self):
        return iter(list(self._modules.values())[::-1])

    def __len__(self):
        return 10 * super().__len__()

    def append(self, what):
        if isinstance(what, nn.Module):
            return super().append(what)
        self.log.append(what)
        return self

    def forward(self, x):
        for child in self:
            x = child(x)
        return x


def test_a_container_keeps_its_own_protocol():
    torch.manual_seed(1)
    plain = Reversed(conv(), nn.ReLU(), conv(3, 4)).eval()
    model = inject(copy.deepcopy(plain), RULES, example_inputs=X)
    with hooked(plain, ["0", "2"], 1e-4, simam):
        assert same_bits(model(X), plain(X))
    assert [type(child) for child in model] == [type(child) for child in plain]
    assert list(model) == [model.get_submodule(name) for name in "210"]
    assert len(model) == len(plain) == 30
    assert model.append("said").log == ["said"]
    with pytest.raises(InjectError, match="eject"):
        model.append(nn.ReLU())
    boundary = inject(nn.Sequential(copy.deepcopy(plain)), "after reversed", example_inputs=X)
    assert same_bits(boundary(X), simam(plain(X)))
