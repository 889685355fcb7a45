"""Networks that nobody here has met: the sites that a knowledgeable person would name, and outputs by the hook oracle.

`golden.txt` holds the sites, by hand; the channel axis of every one of them is 1. What a residual recipe takes is the
branch before it joins the skip, which the last module of the branch returns.
"""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it

from simam_inject import InjectError, bypass, eject, inject, injected, plan
from tests.goldens.freeze import spread
from tests.nets import classifiers, restoring, scales, unets
from tests.nets.parts import NETS
from tests.oracle import E_LAMBDA, NEAR, attend, distance, hooked, same_bits

GOLDEN = {}
for line in Path(__file__).with_name("golden.txt").read_text(encoding="utf-8").splitlines():
    if not line.startswith("#"):
        head, _, paths = line.partition(":")
        GOLDEN[tuple(head.split(" "))] = spread(paths)
FAR = 1e-5
"""A head that flattens its maps, or one site alone, moves the output by less than in other tests."""
ONE_SIZE = ("vit-hybrid", "convlstm", "yolo-pafpn", "gan-generator", "gan-discriminator")
"""Nets that `grow` does not suit."""


def run(model, inputs):
    with torch.no_grad():
        return model(*inputs)


@cache
def values(name):
    """Module path -> a mark of the value that it returns: modules that return one tensor have one mark."""
    net, marks, alive = NETS[name], {}, []
    model = net.build()
    for path, module in model.named_modules():

        def note(_module, _args, output, path=path):
            if isinstance(output, torch.Tensor):
                alive.append(output)
                marks.setdefault(path, (id(output), output._version))

        module.register_forward_hook(note)
    run(model, net.inputs())
    return marks


@cache
def taken(name, recipe):
    """Paths of the sites that the recipe takes in the net as it is."""
    return take(NETS[name].build(), recipe, NETS[name].inputs())


def take(model, recipe, inputs):
    try:
        return [insertion.path for insertion in plan(model, recipe, example_inputs=inputs).insertions]
    except InjectError:
        return []


@pytest.mark.parametrize(("name", "recipe"), list(GOLDEN), ids=lambda part: part)
def test_sites(name, recipe):
    marks = values(name)
    found = taken(name, recipe.rstrip("+"))
    ours = {marks.get(path, path): path for path in found}
    theirs = {marks.get(path, path): path for path in GOLDEN[name, recipe]}
    missing = sorted(theirs[mark] for mark in theirs.keys() - ours.keys())
    extra = sorted(ours[mark] for mark in ours.keys() - theirs.keys())
    assert not missing, f"missing {missing}, more {extra}"
    assert recipe.endswith("+") or not extra, extra
    assert len(ours) == len(found), "one value twice"


EXACT = [key for key, paths in GOLDEN.items() if paths and not key[1].endswith("+")]


@pytest.mark.parametrize(("name", "recipe"), EXACT, ids=lambda part: part)
def test_outputs(name, recipe, monkeypatch):
    net, places = NETS[name], GOLDEN[name, recipe]
    stock = net.build()
    model = inject(copy.deepcopy(stock), recipe, example_inputs=net.inputs(), e_lambda=E_LAMBDA,
                   verify=recipe == "paper")  # fmt: skip
    assert {insertion.channel_dim for insertion in injected(model)} == {1}
    for inputs in (net.inputs(), net.inputs(2, grow=0 if name in ONE_SIZE else 8)):
        plain, found = run(stock, inputs), run(model, inputs)
        expected = by_oracle(stock, name, recipe, places, inputs, monkeypatch)
        assert distance(expected, plain) > FAR
        assert distance(found, expected) < NEAR
        with bypass(model):
            assert same_bits(run(model, inputs), plain)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert same_bits(run(eject(model), inputs), plain)


def by_oracle(stock, name, recipe, places, inputs, monkeypatch):
    """With hooks where modules return the values; where operations compute them, with the forward written again."""
    modules = dict(stock.named_modules())
    with monkeypatch.context() as patch, hooked(stock, [place for place in places if place in modules]):
        rest = {re.sub(r"\d+", "N", place) for place in places if place not in modules}
        for place in rest:
            for kind, forward in WRITTEN[name, recipe, place].items():
                patch.setattr(kind, "forward", forward)
        return run(stock, inputs)


def _mend(self, x):
    res = attend(self.body(x).mul(self.scale))
    res += x
    return res


def _thicket(self, x):
    a = self.act(self.k1(x))
    b = self.act(self.k2(torch.cat((x, a), 1)))
    return attend(self.k3(torch.cat((x, a, b), 1)) * 0.5) + x


def _forest(self, x):
    return attend(self.t2(self.t1(x)) * 0.5) + x


def _raw_by(first, second):
    def forward(self, x):
        out = first(F.conv2d(x, self.w1, padding=1))
        out = F.relu(F.batch_norm(out, self.m1, self.v1, self.g1, self.b1, self.training))
        return F.relu(x + second(F.conv2d(out, self.w2, padding=1)))

    return forward


def _same(x):
    return x


def _raw_net(self, x):
    x = attend(F.conv2d(x, self.first, stride=2, padding=1))
    for unit in self.units:
        x = unit(x)
    return self.out(x)


_RAW_LAST = {classifiers.Raw: _raw_by(_same, attend)}
_RAW_ALL = {classifiers.Raw: _raw_by(attend, attend), classifiers.RawNet: _raw_net}
WRITTEN = {
    ("edsr", "residual", "body.N.mul"): {restoring.Mend: _mend},
    ("rrdb", "residual", "trunk.N.tN.mul"): {restoring.Thicket: _thicket},
    ("rrdb", "residual", "trunk.N.mul"): {restoring.Forest: _forest},
    ("functional-resnet", "paper", "units.N.convNd[N]"): _RAW_LAST,
    ("functional-resnet", "residual", "units.N.convNd[N]"): _RAW_LAST,
    ("functional-resnet", "every-conv", "units.N.convNd[N]"): _RAW_ALL,
    ("functional-resnet", "every-conv", "units.N.convNd"): _RAW_ALL,
    ("functional-resnet", "every-conv", "convNd"): _RAW_ALL,
}


@pytest.mark.parametrize("name", NETS)
def test_names_decide_nothing(name):
    """With every class renamed to one of the libraries' names, the same sites."""
    net = NETS[name]
    for recipe in ("paper", "block-output", "residual", "unet"):
        other, kinds = net.build(), {}
        for module in other.modules():
            kind = type(module)
            if kind.__module__.startswith("tests.nets") and kind.__name__ != "Enlarge":
                if kind not in kinds:
                    kinds[kind] = type(LURES[len(kinds) % len(LURES)], (kind,), {"__module__": kind.__module__})
                module.__class__ = kinds[kind]
        assert take(other, recipe, net.inputs()) == taken(name, recipe), recipe


LURES = ("BasicBlock", "Bottleneck", "LayerNorm", "C2f", "Up", "DenseBlock", "SE")

AXES = [
    ("official-convnext", {"block": "Fathom", "after": "two"}, dict.fromkeys(spread("stages.{0,1}.{0,1}.two"), -1)),
    ("official-convnext", {"block": "Fathom", "after": "norm"}, dict.fromkeys(spread("stages.{0,1}.{0,1}.norm"), -1)),
    ("official-convnext", {"path": "shrinks.0.1", "after": "output"}, {"shrinks.0.1": 1}),
    ("diffusion-unet", {"path": "{mid1,mid_look,mid2}", "after": "output"}, {"mid1": 1, "mid_look": 1, "mid2": 1}),
    ("diffusion-unet", {"block": "Linearly", "after": "to_qkv"},
     {f"{side}.{i}.2.inside.to_qkv": 1 for side in ("downs", "ups") for i in (0, 1)} | {"mid_look.inside.to_qkv": 1}),
    ("vit-hybrid", {"block": "Attend", "after": "output"}, {"layers.0": -1, "layers.1": -1}),
    ("vit-hybrid", {"path": "layers.1.n2", "after": "output"}, {"layers.1.n2": -1}),
    ("ecg-1d", {"block": "Beat", "after": "bn2"}, {f"beats.{i}.bn2": 1 for i in range(4)}),
    ("video-3d", {"block": "Frame", "after": "n1"}, {f"f{i}.{j}.n1": 1 for i in (1, 2) for j in (0, 1)}),
    ("yolo-pafpn", {"block": "Crossing", "after": "output"}, {"neck:0": 1, "neck:1": 1, "neck:2": 1}),
    ("fpn-dict", {"block": "Terrace", "after": "output"}, {"fpn:a": 1, "fpn:b": 1, "fpn:c": 1}),
    ("fpn-dict", {"path": "fpn:b", "after": "output"}, {"fpn:b": 1}),
    ("hrnet", {"block": "Parallel", "after": "output"}, {"m1:0": 1, "m1:1": 1, "m2:0": 1, "m2:1": 1}),
    ("convlstm", {"path": "cell.gates", "after": "output"}, {"cell.gates": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rule", "places"), AXES, ids=lambda part: part if isinstance(part, str) else None)
def test_axes_and_keys(name, rule, places):
    net = NETS[name]
    stock = net.build()
    model = inject(copy.deepcopy(stock), {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=net.inputs())
    assert {insertion.path: insertion.channel_dim for insertion in injected(model)} == places
    inputs = net.inputs(2)
    plain = run(stock, inputs)
    with hooked(stock, places):
        expected = run(stock, inputs)
    assert distance(expected, plain) > FAR
    assert distance(run(model, inputs), expected) < NEAR


def test_there_are_thirty_nets_and_no_class_has_a_known_name():
    assert len(NETS) >= 30
    known = {"BasicBlock", "Bottleneck", "ResBlock", "DoubleConv", "Up", "Down", "C2f", "C3", "Block", "ConvBlock"}
    classes = {type(module).__name__ for net in NETS.values() for module in net.build().modules()}
    assert not classes & known
    assert {name for name, _ in GOLDEN} == set(NETS)
    assert all((name, "every-conv") in GOLDEN for name in NETS)
    assert {factory.__module__ for factory in (net.factory for net in NETS.values())} == {
        module.__name__ for module in (classifiers, restoring, scales, unets)
    }
