"""Every kind of value: lists of chunks, dicts, in-place operations, repeated modules, every rank and size."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject import bypass, inject, injected, plan, simam, verify
from simam_inject.api import survey
from simam_inject.dataflow.example import example_of
from simam_inject.dataflow.sites import UNUSED
from simam_inject.dataflow.survey import survey_model
from simam_inject.editing.attach import strip
from simam_inject.errors import NoMatchError
from tests import oracle
from tests.engine.blocks import Block, conv
from tests.oracle import distance, same_bits, tensors

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))
Y = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
LAMBDA = 1e-4


def attend(x):
    return simam(x, LAMBDA)


class Chunks(Block):
    """As ultralytics' C2f: a list of chunks that grows."""

    def __init__(self):
        super().__init__()
        self.m = nn.ModuleList(conv(2, 2) for _ in range(2))
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x, at=lambda name, value: value):
        y = list(at("a", self.a(x)).chunk(2, 1))
        y.extend(at(f"m.{i}", m(y[-1])) for i, m in enumerate(self.m))
        return self.out(at("cat", torch.cat(y, 1)))


class Dicts(Block):
    def forward(self, batch, at=lambda name, value: value):
        x = at("a[1]", self.a(batch["x"]))
        y = at("a[2]", self.a(batch["y"]))
        return {"sum": at("add", x + y), "parts": (x, y)}


class Calls(Block):
    """One convolution and one activation, three times each."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x, at=lambda name, value: value):
        x = at("act[1]", self.act(at("a[1]", self.a(x))))
        x = at("act[2]", self.act(at("a[2]", self.a(x))))
        return at("act[3]", self.act(at("a[3]", self.a(x))))


class Functional(Block):
    """The same operations twice, on tensors of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("p", X[:1].clone())
        self.register_buffer("q", Y[:1].clone())

    def forward(self, x, at=lambda name, value: value):
        x = at("relu", F.relu(self.a(x)))
        x = at("add", x + self.p)
        x = at("relu[2]", torch.relu(self.b(x)))
        return at("add[2]", x.add(self.q))


class InPlace(Block):
    """Changes in place what is attended, and reads it by its old name."""

    def forward(self, x, at=lambda name, value: value):
        y = at("a", self.a(x))
        y.neg_()
        y += x
        y.mul_(2)
        y[:, :2] = x[:, :2]
        return at("b", self.b(y)) + y


class InPlaceModule(Block):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x, at=lambda name, value: value):
        y = at("a", self.a(x))
        z = at("act", self.act(y))
        return self.b(z) + y


class Residual(Block):
    def forward(self, x, at=lambda name, value: value):
        y = at("b", self.b(at("a", self.a(x))))
        y += x
        return torch.relu_(y)


class Multiple(Block):
    """Several outputs, several readers, early use."""

    def forward(self, x, y, at=lambda name, value: value):
        one = at("a", self.a(x))
        two = at("b", self.b(one + y))
        return one, [two, {"three": one * two}], None


class Loop(Block):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([conv() for _ in range(3)])
        self.named = nn.ModuleDict({"left": conv(), "right": conv()})

    def forward(self, x, at=lambda name, value: value):
        outputs = []
        for i, part in enumerate(self.parts):
            x = at(f"parts.{i}", part(x))
            outputs.append(x)
        for name, part in self.named.items():
            outputs[-1] = outputs[-1] + at(f"named.{name}", part(x))
        return self.named["left"](sum(outputs[1:], outputs[0])) if len(outputs) > 99 else torch.stack(outputs).sum(0)


class Shapes(Block):
    """Sizes go through as numbers of the graph."""

    def forward(self, x, at=lambda name, value: value):
        n, c, h, w = x.shape
        y = at("a", self.a(x)).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = F.interpolate(y, size=(h * 2, w * 2))
        return at("b", self.b(F.adaptive_avg_pool2d(y, x.shape[-2:])))


CASES = [
    (Chunks, (X,), ["a", "m.0", "m.1", "cat"]),
    (Dicts, ({"x": X, "y": Y},), ["a[1]", "a[2]", "add"]),
    (Calls, (X,), ["a[1]", "a[2]", "a[3]", "act[1]", "act[2]", "act[3]"]),
    (Functional, (X,), ["relu", "add", "relu[2]", "add[2]"]),
    (InPlace, (X,), ["a", "b"]),
    (InPlaceModule, (X,), ["a", "act"]),
    (Residual, (X,), ["a", "b"]),
    (Multiple, (X, Y), ["a", "b"]),
    (Loop, (X,), ["parts.0", "parts.1", "parts.2", "named.left", "named.right"]),
    (Shapes, (X,), ["a", "b"]),
]
SITES = [(block, args, site) for block, args, sites in CASES for site in sites]


def rule(block, site):
    name = site.partition("[")[0]
    if name in ("relu", "add", "cat"):
        return {"block": block.__name__, "after": site if "[" in site else {"op": name}}
    return {"block": block.__name__, "after": site}


@pytest.mark.parametrize(("block", "args", "site"), SITES, ids=[f"{b.__name__}-{s}" for b, _, s in SITES])
def test_site_by_site_against_the_block_itself(block, args, site):
    """The oracle is the block's own forward, which attends where `at` names the site."""
    torch.manual_seed(4)
    plain = block().eval()
    ours = copy.deepcopy(plain)
    # A kind of operation without a number means every one of them.
    inject(ours, {"rules": [rule(block, site)]}, example_inputs=copy.deepcopy(args), verify=False)
    sites = next(sites for other, _, sites in CASES if other is block)
    meant = [other for other in sites if other.startswith(site)] if site in ("relu", "add") else [site]
    assert len(injected(ours)) == len(meant)

    def at(name, value):
        return attend(value) if name in meant else value

    for training in (False, True):
        plain.train(training), ours.train(training)
        expected = plain(*copy.deepcopy(args), at=at)
        assert same_bits(ours(*copy.deepcopy(args)), expected)
    assert not same_bits(expected, plain(*copy.deepcopy(args)))
    with bypass(ours):
        assert same_bits(ours(*copy.deepcopy(args)), plain(*copy.deepcopy(args)))
    for model, output in ((plain, expected), (ours, ours(*copy.deepcopy(args)))):
        model.zero_grad()
        sum(tensor.square().sum() for tensor in tensors(output)).backward()
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or distance(other.grad, one.grad) < 1e-5


@pytest.mark.parametrize(("block", "args", "sites"), CASES, ids=[block.__name__ for block, _, _ in CASES])
def test_all_sites_of_a_block_at_once(block, args, sites):
    torch.manual_seed(4)
    plain = block().eval()
    rules = {str(rule(block, site)): rule(block, site) for site in sites if not site.startswith(("relu[", "add["))}
    ours = inject(copy.deepcopy(plain), {"rules": list(rules.values())}, example_inputs=args)
    # One hook stands for all calls of a shared module.
    assert sum(insertion.runs for insertion in injected(ours)) == len(sites)
    expected = plain(*copy.deepcopy(args), at=lambda _name, value: attend(value))
    assert same_bits(ours(*copy.deepcopy(args)), expected)


class InLoop(Block):
    def forward(self, x):
        for _ in range(2):
            x = torch.relu(self.a(x)) - 0.1
        return x


def test_one_pass_of_a_loop_cannot_be_named():
    message = r"a runs 2 times .*in a loop"
    with pytest.raises(NoMatchError, match=message):
        plan(InLoop(), "after inloop.a[2]", example_inputs=X)


def test_a_list_that_the_caller_reuses_is_not_touched():
    torch.manual_seed(4)
    ours = inject(Dicts().eval(), "after dicts.add", example_inputs=({"x": X, "y": Y},))
    batch = {"x": X, "y": Y}
    ours(batch)
    assert list(batch) == ["x", "y"]
    assert batch["x"] is X


class Before(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) + y


def test_before_attends_for_one_reader_alone():
    torch.manual_seed(4)
    plain = Before().eval()
    ours = inject(copy.deepcopy(plain), "before before.b", example_inputs=X)
    (there,) = injected(ours)
    assert (there.path, there.reader, there.position) == ("a", "b", "before")
    y = plain.a(X)
    assert same_bits(ours(X), plain.b(attend(y)) + y)


def test_before_residual_attends_the_branch_alone():
    torch.manual_seed(4)
    plain = Residual().eval()
    ours = inject(copy.deepcopy(plain), "before residual.residual", example_inputs=X)
    assert same_bits(ours(X), torch.relu(attend(plain.b(plain.a(X))) + X))


class InPlaceFunction(Block):
    def forward(self, x):
        y = self.a(x)
        F.relu_(y)
        return self.b(y)


@pytest.mark.parametrize("block", [InPlaceModule, InPlaceFunction])
def test_before_a_reader_that_writes_what_others_read(block):
    target = "act" if block is InPlaceModule else {"op": "relu"}
    message = r"in-place|read the same value"
    with pytest.raises(NoMatchError, match=message):
        plan(block(), {"rules": [{"block": block.__name__, "before": target}]}, example_inputs=X)


def rank(dimensions):
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    torch.manual_seed(4)
    model = nn.Sequential(convolution(3, 4, 3, padding=1), nn.ReLU(), convolution(4, 2, 1)).eval()
    return model, {"rules": [{"path": "0", "after": "output"}]}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(7,), (1, 1, 2), (5, 9), (2, 1), (13, 1), (3, 5, 2)])
def test_every_rank_and_odd_sizes(batch, size):
    model, recipe = rank(len(size))
    plain = copy.deepcopy(model)
    x = torch.rand((batch, 3, *size), generator=torch.Generator().manual_seed(1))
    inject(model, recipe, example_inputs=x)
    expected = plain[2](plain[1](oracle.attend(plain[0](x), LAMBDA)))
    assert distance(model(x), expected) < 1e-5
    one = torch.rand((batch, 3, *(1 for _ in size)), generator=torch.Generator().manual_seed(1))
    found = model(one)  # a map of one position: the gate is sigmoid(1/2), never NaN
    assert torch.isfinite(found).all()
    assert distance(found, plain[2](plain[1](plain[0](one) * torch.sigmoid(torch.tensor(0.5))))) < 1e-5


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.mix = conv(), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.mix(self.norm(self.a(x).permute(0, 2, 3, 1)))


def test_a_layout_with_channels_last():
    torch.manual_seed(4)
    plain = ChannelsLast().eval()
    ours = inject(copy.deepcopy(plain), "after channelslast.norm", example_inputs=torch.rand(2, 4, 8, 6))
    assert injected(ours)[0].channel_dim == -1
    x = torch.rand(2, 4, 8, 6)
    expected = plain.mix(oracle.attend(plain.norm(plain.a(x).permute(0, 2, 3, 1)), LAMBDA, channel_dim=-1))
    assert distance(ours(x), expected) < 1e-5


def test_a_model_that_is_one_layer():
    torch.manual_seed(4)
    plain = conv().eval()
    ours = inject(copy.deepcopy(plain), "after conv2d", example_inputs=X)
    assert same_bits(ours(X), attend(plain(X)))
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert verify(ours, example_inputs=X).ok


# Constants of a few numbers keep them where the rest of a recording has shapes alone


class Constants(Block):
    """As ultralytics' Detect: a plain attribute and a buffer, whose numbers decide."""

    def __init__(self):
        super().__init__()
        self.strides = torch.tensor([2, 4])
        self.register_buffer("scale", torch.rand(4, 1, 1))
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x):
        return self.go(self.a(x))


class Numbers(Constants):
    def go(self, y):
        return self.b(y.new_full(y.shape, self.strides[0].item()) + y)


class Decides(Constants):
    def go(self, y):
        return self.b(y) if self.strides.sum() > 5 else self.a(y)


class Mixes(Constants):
    def go(self, y):
        return self.b(y * self.scale) + torch.stack([self.scale, self.scale + 1]).sum(0)


class Indexes(Constants):
    def go(self, y):
        return self.b(y[:, self.strides - 2].repeat(1, 2, 1, 1))


class WritesFirst(Constants):
    """Only with values: what it writes to is a constant."""

    def go(self, y):
        self.count += y.mean((0, 2, 3))
        return self.b(y) * self.count[0]


class WritesNumber(Constants):
    def go(self, y):
        self.strides[0] = y.shape[0]
        self.strides[1].add_(y.mean().long())
        return self.b(y)


class TimeStep(Constants):
    def go(self, y):
        return self.b(y)

    def forward(self, x, steps):
        embedded = torch.arange(4, device=steps.device) * steps[:, None]
        return super().forward(x) * self.a(x).mean() + embedded[:, :, None, None] * int(steps[0])


@pytest.mark.parametrize("kind", [Numbers, Decides, Mixes, Indexes, WritesFirst, WritesNumber, TimeStep])
def test_constants_keep_their_numbers(kind):
    torch.manual_seed(4)
    model = kind().eval()
    args = (X, torch.tensor([3, 5])) if kind is TimeStep else (X,)
    found, full = (
        survey_model(model, example_of(model, args), strip, with_values=values).anatomy for values in (False, True)
    )
    assert found.sites == full.sites
    assert model.strides.tolist() == [2, 4]
    assert not model.count.any()


class Multiplies(Block):
    def forward(self, x):
        y = self.a(x)
        y.mul_(2.0)
        return self.b(y)


def test_an_in_place_operation_is_read_under_the_name_of_its_tensor():
    with pytest.raises(NoMatchError, match=r"mul: .*in place.*`before`"):
        plan(Multiplies(), {"rules": [{"path": "mul", "after": "output"}]}, example_inputs=X)
    assert plan(Multiplies(), {"rules": [{"path": "b", "before": "input"}]}, example_inputs=X).insertions


# A view that is written in place while what it looks into is read afterwards cannot be attended


class WritesThroughView(Block):
    def forward(self, x):
        y = self.a(x)
        half = y[:, :2]
        half.mul_(3)
        return self.b(y)


class WritesThroughViewOfView(Block):
    def forward(self, x):
        y = self.a(x)
        half = y[:, :2]
        half.permute(0, 1, 3, 2).mul_(3)
        return self.b(y)


class WritesAndReadsView(Block):
    """Nobody reads the base after the write."""

    def __init__(self):
        super().__init__()
        self.b = conv(2, 4)

    def forward(self, x):
        half = self.a(x)[:, :2]
        half.mul_(3)
        return self.b(half)


@pytest.mark.parametrize("block", [WritesThroughView, WritesThroughViewOfView])
def test_a_view_that_is_written_in_place(block):
    model = block().eval()
    with pytest.raises(NoMatchError, match=r"getitem: .* shares memory .*in-place"):
        plan(model, {"rules": [{"path": "getitem", "after": "output"}]}, example_inputs=X)
    inject(model, {"rules": [{"path": "a", "after": "output"}]}, example_inputs=X)
    assert verify(model, example_inputs=X).ok


def test_a_view_whose_base_is_not_read_again():
    model = WritesAndReadsView().eval()
    inject(model, {"rules": [{"path": "getitem", "after": "output"}]}, example_inputs=X)
    assert [insertion.path for insertion in injected(model)] == ["getitem"]


class Named(dict):
    pass


class Listed(list):
    pass


class ReadsTwo(nn.Module):
    def __init__(self, keys):
        super().__init__()
        self.c, self.keys = nn.Conv2d(4, 4, 3, padding=1), keys

    def forward(self, maps):
        return self.c(maps[self.keys[0]]) + maps[self.keys[1]]


class GivesTwo(nn.Module):
    def __init__(self, make, keys):
        super().__init__()
        self.a, self.b, self.k = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), ReadsTwo(keys)
        self.make = make

    def forward(self, x):
        return self.k(self.make(self.a(x), self.b(x)))


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda p, q: Named(p=p, q=q), "pq"),
        (lambda p, q: Listed([p, q]), (0, 1)),
        (lambda p, q: OrderedDict(p=p, q=q), "pq"),
    ],
)
def test_what_a_container_of_any_class_brings_is_read(make, keys):
    found = plan(
        GivesTwo(make, keys).eval(),
        {"rules": [{"path": "k", "before": "input"}]},
        example_inputs=torch.rand(2, 3, 8, 8),
    )
    assert [insertion.path for insertion in found.insertions] == ["a", "b"]


class Carrier:
    def __init__(self, tensors):
        self.tensors = tensors


class Ignores(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, _carrier, y):
        return self.c(y)


class Carries(Block):
    """As torchvision's detectors pass an ImageList on."""

    def __init__(self):
        super().__init__()
        self.k = Ignores()

    def forward(self, x):
        return self.k(Carrier(self.a(x).sigmoid()), self.b(x))


def test_what_only_an_object_carries_during_the_forward_is_not_returned():
    assert survey(Carries().eval(), example_inputs=X).site_by_path["sigmoid"].obstacle == UNUSED


class Untracked(Block):
    def forward(self, x):
        y = self.a(x)
        with torch._C.DisableTorchFunction():
            z = y * 2
        return self.b(z)


def test_a_reader_that_is_not_recorded_is_not_denied():
    assert survey(Untracked().eval(), example_inputs=X).site_by_path["a"].obstacle == UNUSED
    assert "that is recorded" in UNUSED


class Sparse(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.eye(3).to_sparse(), persistent=False)

    def forward(self, x):
        self.adjacency.mul_(1.0)
        return super().forward(x)


def test_a_sparse_tensor_may_be_modified_in_place():
    stock, x = Sparse().double().eval(), X.double()
    ours = inject(copy.deepcopy(stock), "after sparse.a", e_lambda=oracle.E_LAMBDA, example_inputs=x)
    oracle.assert_attended(ours(x), stock, ["a"], x)


TRANSFORMS = {
    "vmap": lambda block, x: block.b(torch.vmap(lambda one: one / (one.norm() + 1))(block.a(x))),
    "vmap of a module": lambda block, x: torch.vmap(block.b)(block.a(x)),
    "vmap of vmap": lambda block, x: block.b(torch.vmap(torch.vmap(torch.exp))(block.a(x))),
    "vjp": lambda block, x: torch.func.vjp(block.b, block.a(x))[0],
    "inside vjp": lambda block, x: torch.func.vjp(block.a, x)[0],
    "jacfwd": lambda block, x: torch.func.jacfwd(lambda k: block.b(block.a(x)) * k)(x.new_tensor(2.0)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_a_transform_of_torch_func_reads_is_used(name):
    stock, x = type(name, (Block,), {"forward": TRANSFORMS[name]})().double().eval(), X.double()
    ours = inject(
        copy.deepcopy(stock),
        {"e_lambda": oracle.E_LAMBDA, "rules": [{"path": "a", "after": "output"}]},
        example_inputs=x,
    )
    oracle.assert_attended(ours(x), stock, ["a"], x)


def test_a_list_that_a_module_is_given_has_run():
    model = GivesTwo(lambda *maps: list(maps), (0, 1)).eval()
    given = survey(model, example_inputs=torch.rand(2, 3, 8, 8)).site_by_path["k.maps"]
    assert (given.runs, given.maps) == (1, ("k.maps:0", "k.maps:1"))


def test_the_steps_of_a_call_as_a_graph():
    """Each node is a step, and reads the nodes whose results the step reads."""
    model, x = Chunks().eval(), X
    flow = survey_model(model, example_of(model, x), strip)
    graph = flow.recording.first_calls[""].graph()
    graph.lint()
    nodes = {node.meta["step"].path: node for node in graph.nodes}
    assert {path: node.op for path, node in nodes.items() if ":" not in path} == {
        "x": "placeholder",
        "a": "call_module",
        "chunk": "call_function",
        "m.0": "call_module",
        "m.1": "call_module",
        "cat": "call_function",
        "out": "call_module",
    }
    assert nodes["cat"].all_input_nodes == [nodes["chunk:0"], nodes["chunk:1"], nodes["m.0"], nodes["m.1"]]
    assert nodes["chunk:1"].args == (nodes["chunk"], "1")
    assert nodes["cat"].target is torch.cat
    assert nodes["out"].target == "out"


def test_a_graph_with_a_tensor_from_outside_the_forward():
    class Scaled(Block):
        scale = torch.full((1, 4, 1, 1), 2.0)

        def forward(self, x, at=lambda name, value: value):
            return self.a(x) * self.scale

    flow = survey_model(Scaled().eval(), example_of(nn.Identity(), X), strip)
    graph = flow.recording.first_calls[""].graph()
    graph.lint()
    assert [(node.op, str(node.target)) for node in graph.nodes][2] == ("get_attr", "outside")


class Written(nn.Module):
    """The activation's result is read under the name of its input."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(3, 4, 3, padding=1), activation, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        self.act(x)
        return x + y


@pytest.mark.parametrize("kind", [nn.Hardswish, nn.ReLU6, nn.LeakyReLU, nn.Mish])
def test_activations_that_write_into_their_input_are_seen_to_do_so(kind):
    sites = survey(Written(kind(inplace=True)), example_inputs=torch.rand(1, 3, 8, 8)).site_by_path
    assert sites["a"].obstacle is None
    assert sites["act"].obstacle.startswith("it modifies a tensor in place")


class PartialConv2d(nn.Conv2d):
    """Also convolves the mask, as in inpainting."""

    def forward(self, x):
        kernel = self.weight.new_ones(1, 1, 3, 3)
        known = F.conv2d((x[:, :1] != 0).to(x.dtype), kernel, padding=1)
        return super().forward(x) * 9 / known.clamp(min=1)


class DifferenceConv2d(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) - F.conv2d(x, self.weight.sum((2, 3), keepdim=True))


class UnfoldedConv2d(nn.Conv2d):
    def forward(self, x):
        columns = F.unfold(x, 3, padding=1)
        return (self.weight.flatten(1) @ columns).unflatten(2, x.shape[2:])


class NormedConv2d(nn.Conv2d):
    """As that of detectron2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(super().forward(x))


@pytest.mark.parametrize("kind", [PartialConv2d, DifferenceConv2d, UnfoldedConv2d, NormedConv2d])
def test_a_class_of_convolutions_has_its_kernel_whatever_its_forward_runs(kind):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), kind(4, 4, 3, padding=1), nn.ReLU()).eval()
    rule = {"path": "[012]", "after": "output", "where": {"kernel": 3}}
    assert [one.path for one in plan(model, {"rules": [rule]}, example_inputs=X).insertions] == ["1"]
