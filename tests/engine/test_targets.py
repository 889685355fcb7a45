"""What a rule can name, and what a miss says: faults E1 to E5 and E8, by kind. Names of classes decide nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject import InjectError, bypass, inject, injected, plan, verify
from tests.engine.blocks import build, run
from tests.engine.targets import assert_like_hooks, conv, image, rule
from tests.oracle import E_LAMBDA, assert_right, attend, same_bits

# E1: what has a kernel is a convolution


class PadConv(nn.Module):
    def __init__(self, kernel_size=3):
        super().__init__()
        self.kernel_size, self.stride, self.groups = (kernel_size, kernel_size), (1, 1), 1
        self.conv = nn.Conv2d(6, 6, kernel_size)

    def forward(self, x):
        return self.conv(F.pad(x, (1, 1, 1, 1)))


class StandardConv(PadConv):
    def forward(self, x):
        return self.conv(F.pad(x, (1, 1, 1, 1), mode="replicate"))


class SequentialConv(nn.Sequential):
    def __init__(self):
        super().__init__(nn.ZeroPad2d(1), nn.Conv2d(6, 6, 3))
        self.kernel_size = 3


class SeparableConv(nn.Module):
    """The spatial convolution first, then a 1x1: the module's result is not the spatial convolution's."""

    def __init__(self):
        super().__init__()
        self.kernel_size = (3, 3)
        self.depthwise, self.conv = conv(groups=6), conv(kernel=1)

    def forward(self, x):
        return self.conv(self.depthwise(x))


class Wrapping(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv1, self.bn1 = kind(), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = kind(), nn.BatchNorm2d(6)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class BasicBlock(Wrapping):
    """With a name that a list of class names knows."""


class Stacked(nn.Module):
    def __init__(self, block, count=3):
        super().__init__()
        self.stem = conv(3)
        self.blocks = nn.Sequential(*(block() for _ in range(count)))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


WRAPPERS = {
    PadConv: ("conv2", "conv2.conv"),
    StandardConv: ("conv2", "conv2.conv"),
    SequentialConv: ("conv2", "conv2.1"),
    SeparableConv: ("conv2.depthwise",),
}


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("block", [BasicBlock, Wrapping])
def test_a_wrapped_convolution_is_attended_once(block, kind):
    stock = build(Stacked, lambda: block(kind))
    x = image(2, 3, 8, 8)
    model = inject(copy.deepcopy(stock), "paper", example_inputs=x, e_lambda=E_LAMBDA)
    found = [insertion.path for insertion in injected(model)]
    assert len(found) == 3
    for index, path in enumerate(found):
        assert path in [f"blocks.{index}.{place}" for place in WRAPPERS[kind]]
    places = [f"blocks.{index}.{WRAPPERS[kind][-1]}" for index in range(3)]
    assert_like_hooks(model, stock, places, x)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_condition_on_the_kernel_asks_real_convolutions(kind):
    stock = build(Stacked, lambda: Wrapping(kind), 1)
    spatial = rule(block="Wrapping", after={"op": "conv2d", "kernel": ">1"})
    planned = plan(stock, spatial, example_inputs=image(2, 3, 8, 8))
    assert len(planned.insertions) == 2
    planned = plan(stock, rule(path="*", after={"op": "conv"}), example_inputs=image(2, 3, 8, 8))
    assert len(planned.insertions) == sum(isinstance(module, nn.Conv2d) for module in stock.modules())


# E2: modules that are made in the forward


class MadeAct(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv()

    def forward(self, x):
        return nn.ReLU(inplace=True)(self.c(x) + x)


class MadeSequential(MadeAct):
    def forward(self, x):
        return nn.Sequential(nn.Tanh(), nn.Identity())(torch.add(self.c(x), x))


class MadeBefore(MadeAct):
    """`c` reads what a module returns that is no child of anything."""

    def forward(self, x):
        return nn.functional.relu_(x + self.c(nn.LeakyReLU(0.2)(x)))


class MadeNorm(MadeAct):
    def forward(self, x):
        out = self.c(x)
        out += x
        return nn.InstanceNorm2d(6)(out).relu()


class MadePool(MadeAct):
    def forward(self, x):
        return nn.AvgPool2d(3, 1, 1)(self.c(x).add(x))


class Reversed(MadeAct):
    """`x.__radd__`, and a scale."""

    def forward(self, x):
        return F.relu(x.__radd__(self.c(x))) * 1.5


class ByKeyword(MadeAct):
    def forward(self, x):
        return nn.ReLU()(torch.add(input=self.c(x), other=x))


MADE = [MadeAct, MadeSequential, MadeBefore, MadeNorm, MadePool, Reversed, ByKeyword]


@pytest.mark.parametrize("block", MADE)
def test_the_add_is_found_beside_modules_made_on_the_fly(block):
    stock = build(Stacked, block)
    x = image(2, 3, 8, 8)
    model = inject(copy.deepcopy(stock), rule(block=block.__name__, before="residual"), example_inputs=x)
    assert [insertion.path for insertion in injected(model)] == [f"blocks.{index}.c" for index in range(3)]
    assert_like_hooks(model, stock, [f"blocks.{index}.c" for index in range(3)], x)


@pytest.mark.parametrize("block", MADE)
def test_the_shipped_recipe_finds_it_too(block):
    stock = build(Stacked, block)
    found = plan(stock, "residual", example_inputs=image(2, 3, 8, 8)).insertions
    assert [insertion.path for insertion in found] == [f"blocks.{index}.c" for index in range(3)]


# E3: operations after a branch of Python; true reasons


class Up(nn.Module):
    """As in a popular UNet: the skip is as large as it is."""

    def __init__(self):
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(6, 6, 2, 2), conv(12)

    def forward(self, x, skip):
        x = self.up(x)
        dh, dw = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if dh or dw:
            x = F.pad(x, (0, dw, 0, dh))
        return self.conv(torch.cat([skip, x], 1))


class UpResized(Up):
    def forward(self, x, skip):
        x = self.up(x)
        if x.shape[2:] != skip.shape[2:]:
            x = F.interpolate(x, size=skip.shape[2:])
        x = torch.cat((skip, x), dim=1)
        return self.conv(x)


class UpTwice(Up):
    """Both the convolution and a gate read it."""

    def __init__(self):
        super().__init__()
        self.gate = conv(12, 1, 1)

    def forward(self, x, skip):
        x = self.up(x)
        if x.shape != skip.shape:
            x = F.pad(x, (0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]))
        joined = torch.cat([skip, x], 1)
        return self.conv(joined) * self.gate(joined).sigmoid()


class UpCropped(Up):
    def forward(self, x, skip):
        x = self.up(x)
        skip = skip[:, :, : x.shape[2], : x.shape[3]] if skip.shape[2] > x.shape[2] else skip
        x = F.interpolate(x, size=skip.shape[2:])
        return self.conv(torch.cat([skip, x], 1))


def attended_cat(up):
    """The same forward with the formula around its `cat`."""

    class Attended(up):
        pass

    def forward(self, x, skip):
        real = torch.cat
        torch.cat = lambda *args, **kwargs: attend(real(*args, **kwargs))
        try:
            return up.forward(self, x, skip)
        finally:
            torch.cat = real

    Attended.forward = forward
    return Attended


class SmallUNet(nn.Module):
    def __init__(self, up):
        super().__init__()
        self.stem, self.down, self.up, self.head = conv(3), conv(stride=2), up(), conv(6, 2, 1)

    def forward(self, x):
        skip = self.stem(x)
        return self.head(self.up(F.relu(self.down(skip)), skip))


@pytest.mark.parametrize("up", [Up, UpResized, UpTwice, UpCropped])
def test_the_cat_behind_a_branch_of_python(up):
    stock, oracle = build(SmallUNet, up), build(SmallUNet, attended_cat(up))
    model = inject(copy.deepcopy(stock), rule(block=up.__name__, after="cat"), example_inputs=image(2, 3, 8, 8))
    assert [insertion.path for insertion in injected(model)] == ["up.cat"]
    for size in ((8, 8), (9, 11), (7, 8)):  # with and without padding
        x = image(2, 3, *size)
        assert_right(run(model, x), run(oracle, x), run(stock, x))
        with bypass(model):
            assert same_bits(run(model, x), run(stock, x))


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.aux = conv(3), nn.Sequential(conv(3), nn.ReLU())

    def forward(self, x):
        return self.main(x) + self.aux(x) if self.training else self.main(x)


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.gate = conv(3), nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(6, 6, 1))

    def forward(self, x):
        y = self.main(x)
        return y * self.gate(y)


@pytest.mark.parametrize(
    ("factory", "wanted", "words"),
    [
        (lambda: SmallUNet(Up), {"block": "Up", "after": "stack"}, "stack"),
        (lambda: SmallUNet(Up), {"block": "Up", "before": "residual"}, "add|join|skip"),
        (lambda: SmallUNet(Up), {"block": "Upp", "after": "cat"}, "Up"),
        (lambda: SmallUNet(Up), {"block": "Up", "after": "cov"}, "conv"),
        (Sometimes, {"path": "aux.0", "after": "output"}, "never|not run|did not"),
        (Scalar, {"path": "gate.1", "after": "output"}, "1x1"),
    ],
)
def test_a_miss_names_its_true_reason(factory, wanted, words):
    with pytest.raises(InjectError, match=words):
        inject(build(factory), rule(**wanted), example_inputs=image(2, 3, 8, 8))


# E4, E5: structure, not names


def renamed(model, names):
    """The same network with other class names: subclasses of each class with children, named at random."""
    for module in model.modules():
        kind = type(module)
        if kind.__module__ == __name__ and list(module.children()):
            module.__class__ = names.setdefault(kind, type(f"Zq{len(names)}", (kind,), {"__module__": __name__}))
    return model


class PreAct(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(6), conv()
        self.bn2, self.conv2 = nn.BatchNorm2d(6), conv()

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(out))) + x


class Restoring(nn.Module):
    """No norm, a scaled branch, as in super-resolution."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(), nn.ReLU(True), conv())

    def forward(self, x):
        return x + self.body(x).mul(0.1)


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce, self.space, self.expand = conv(6, 4, 1), conv(4, 4), conv(4, 6, 1)
        self.n1, self.n2, self.n3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(6)

    def forward(self, x):
        out = F.silu(self.n1(self.reduce(x)))
        out = F.silu(self.n2(self.space(out)))
        return F.silu(x + self.n3(self.expand(out)))


class Bottleneck(nn.Module):
    """A dense layer, under the name of a residual block."""

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(6), conv(6, 4, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), conv(4, 6)

    def forward(self, x):
        out = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([out, x], 1)[:, :6]


class Gated(nn.Module):
    """Squeeze-and-excitation whose gate has a 1-D convolution with a kernel."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.gate = conv(), conv(), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        out = self.conv2(F.relu(self.conv1(x)))
        scale = self.gate(out.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid()
        return F.relu(out * scale + x)


BY_STRUCTURE = {
    PreAct: {"paper": "conv2", "residual": "conv2", "block-output": ""},
    Restoring: {"paper": "body.2", "block-output": ""},
    Narrow: {"paper": "space", "residual": "n3", "block-output": ""},
    Gated: {"paper": "conv2", "block-output": ""},
    Wrapping: {"paper": "conv2", "residual": "bn2", "block-output": ""},
}


@pytest.mark.parametrize(
    ("block", "recipe"), [(block, recipe) for block, recipes in BY_STRUCTURE.items() for recipe in recipes]
)
def test_blocks_are_found_by_structure(block, recipe):
    stock = build(Stacked, block if block is not Wrapping else lambda: Wrapping(conv))
    x = image(2, 3, 8, 8)
    place = BY_STRUCTURE[block][recipe]
    places = [f"blocks.{index}.{place}".rstrip(".") for index in range(3)]
    aliases = {f"blocks.{index}.body": f"blocks.{index}.body.2" for index in range(3)}
    model = inject(copy.deepcopy(stock), recipe, example_inputs=x, e_lambda=E_LAMBDA)
    assert [aliases.get(insertion.path, insertion.path) for insertion in injected(model)] == places
    assert_like_hooks(model, stock, places, x)


@pytest.mark.parametrize("block", [PreAct, Restoring, Narrow, Gated, Bottleneck, MadeAct])
@pytest.mark.parametrize("recipe", ["paper", "residual", "block-output", "stage-end"])
def test_other_class_names_take_the_same_sites(block, recipe):
    named, other = build(Stacked, block), renamed(build(Stacked, block), {})
    parents = {type(module).__name__ for module in other.modules() if list(module.children())}
    assert parents <= {"Zq0", "Zq1", "Sequential"}
    found = []
    for model in (named, other):
        try:
            insertions = plan(model, recipe, example_inputs=image(2, 3, 8, 8)).insertions
        except InjectError:
            insertions = ()
        found.append([(insertion.path, insertion.reader) for insertion in insertions])
    assert found[0] == found[1]


def test_a_dense_layer_is_no_residual_block_whatever_it_is_called():
    with pytest.raises(InjectError):
        inject(build(Stacked, Bottleneck), "residual", example_inputs=image(2, 3, 8, 8))


# E8: verification remembers what the example was


# Features that a forward keeps: an in-place operation returns the very tensor that it was given


class Accumulating(Wrapping):
    def __init__(self):
        super().__init__(conv)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += x
        return F.relu(out, inplace=True)


class KeepsFeatures(Stacked):
    """Like the encoders of networks for depth."""

    def forward(self, x):
        self.features = [self.stem(x)]
        for block in self.blocks:
            self.features.append(block(self.features[-1]))
        return self.head(self.features[-1].mean((2, 3)))


@pytest.mark.parametrize("network", [Stacked, KeepsFeatures])
def test_the_branch_of_a_sum_in_place(network):
    stock, x = build(network, Accumulating), image(2, 3, 8, 8)
    wanted = ["blocks.0.bn2", "blocks.1.bn2", "blocks.2.bn2"]
    model = inject(copy.deepcopy(stock), "residual", example_inputs=x, e_lambda=E_LAMBDA)
    assert [site.path for site in injected(model)] == wanted
    assert_like_hooks(model, stock, wanted, x)


# A module with two names: the model names it, and a Sequential beside it runs it


class TwoNames(nn.Module):
    """As in temporal convolution networks and nnU-Net."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = conv(), nn.ReLU()
        self.conv2, self.relu2 = conv(), nn.ReLU()
        self.net = nn.Sequential(self.conv1, self.relu1, self.conv2, self.relu2)

    def forward(self, x):
        return F.relu(self.net(x) + x)


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        (rule(block="TwoNames", after="conv2"), ["blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2"]),
        (rule(block="TwoNames", after="net.2"), ["blocks.0.net.2", "blocks.1.net.2", "blocks.2.net.2"]),
        (rule(block="TwoNames", after="conv2d[2]"), ["blocks.0.net.2", "blocks.1.net.2", "blocks.2.net.2"]),
        (rule(path="blocks.1.relu1", after="output"), ["blocks.1.relu1"]),
        (rule(path="blocks.1.{relu1,net.1}", after="output"), ["blocks.1.relu1"]),
        (rule(path="blocks.1.net.1", after="output"), ["blocks.1.net.1"]),
        (rule(block="TwoNames", before="relu2", pick="last"), ["blocks.2.net.2"]),
        ("paper", ["blocks.0.net.2", "blocks.1.net.2", "blocks.2.net.2"]),
    ],
    ids=str,
)
def test_both_names_of_a_module(recipe, wanted):
    stock, x = build(Stacked, TwoNames), image(2, 3, 8, 8)
    planned = plan(stock, recipe, example_inputs=x)
    assert [(site.path, site.note) for site in planned.insertions] == [(path, "") for path in wanted]
    model = inject(copy.deepcopy(stock), recipe, example_inputs=x, e_lambda=E_LAMBDA)
    assert_like_hooks(model, stock, wanted, x)


class OneD(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(12, 6, 5, padding=2), nn.Conv1d(6, 6, 5, padding=2)

    def forward(self, x):
        return self.b(self.a(x).relu())


class ThreeD(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x).relu())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(1)

    def forward(self, x, depth):
        return self.a(x) + self.b(depth)


class Keywords(TwoInputs):
    def forward(self, *, x, depth):
        return super().forward(x, depth)


@pytest.mark.parametrize(
    ("factory", "example"),
    [
        (OneD, image(2, 12, 64)),
        (ThreeD, image(1, 1, 6, 8, 10)),
        (lambda: nn.Sequential(conv(1), nn.ReLU(), conv(6, 3)), image(1, 1, 20, 16)),
        (TwoInputs, (image(2, 3, 8, 8), image(2, 1, 8, 8))),
        (Keywords, {"x": image(2, 3, 8, 8), "depth": image(2, 1, 8, 8)}),
    ],
    ids=["1d", "3d", "grey", "two", "keywords"],
)
def test_verify_remembers_the_example(factory, example):
    model = inject(build(factory), rule(path="*", after={"op": "conv"}), example_inputs=example)
    for each in (model, copy.deepcopy(model)):
        found = verify(each)
        assert found.ok, str(found)
        assert sum(check.ok is True for check in found.checks) > 2


class Shrinking(nn.Module):
    """A loop, and a result of one pixel, which has no SimAM either."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        for _ in range(2):
            x = self.a(x) * 1.5
        return x.mean((2, 3), keepdim=True)


class Looping(Shrinking):
    def forward(self, x):
        for _ in range(2):
            x = self.a(x) * 1.5
        return x - 1


@pytest.mark.parametrize(("block", "advice"), [(Shrinking, ""), (Looping, ". The output of 1 can be used instead")])
def test_another_place_is_named_only_where_it_can_be_used(block, advice):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), block(), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(InjectError) as caught:
        plan(model, {"rules": [{"path": "1.mul", "after": "output"}]}, example_inputs=torch.rand(2, 3, 8, 8))
    assert str(caught.value).endswith(f"or together with other operations{advice}")
