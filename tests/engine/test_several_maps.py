"""Fault E6: a module that returns or is given several maps; each can be attended, and each once."""

import copy
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from simam_inject import inject, injected, plan, simam
from simam_inject.errors import NoMatchError
from tests.engine.blocks import Block, build, run
from tests.engine.targets import assert_like_hooks, conv, image, rule
from tests.oracle import assert_attended, assert_right, distance, hooked

Levels = namedtuple("Levels", "low high")


class Pyramid(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.low, self.high, self.form = conv(), conv(stride=2), form

    def forward(self, x):
        low, high = self.low(x).relu(), self.high(x).relu()
        return {
            "list": lambda: [low, high],
            "tuple": lambda: (low, high),
            "named": lambda: Levels(low, high),
            "dict": lambda: {"p3": low, "p4": high},
            "ordered": lambda: OrderedDict(p3=low, p4=high),
        }[self.form]()


class Reader(nn.Module):
    """Like a detection head: it is given all maps."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(conv(6, 2, 1) for _ in range(2))

    def forward(self, maps):
        maps = list(maps.values()) if isinstance(maps, dict) else list(maps)
        return [head(each) for head, each in zip(self.heads, maps, strict=True)]


class Detector(nn.Module):
    """The neck's maps are read twice: by the head, and for a sum."""

    def __init__(self, form):
        super().__init__()
        self.stem, self.neck, self.head = conv(3), Pyramid(form), Reader()

    def forward(self, x):
        maps = self.neck(self.stem(x))
        values = list(maps.values()) if isinstance(maps, dict) else list(maps)
        return [*self.head(maps), sum(each.mean((2, 3)) for each in values)]


FORMS = {"list": ("0", "1"), "tuple": ("0", "1"), "named": None, "dict": ("p3", "p4"), "ordered": ("p3", "p4")}


@pytest.mark.parametrize("form", FORMS)
def test_each_map_of_a_block_that_returns_several(form):
    stock = build(Detector, form)
    x = image(2, 3, 8, 8)
    model = inject(copy.deepcopy(stock), rule(block="Pyramid", after="output"), example_inputs=x)
    found = [insertion.path for insertion in injected(model)]
    assert len(found) == 2
    if FORMS[form]:
        assert found == [f"neck:{key}" for key in FORMS[form]]
    assert_like_hooks(model, stock, [f"neck:{key}" for key in FORMS[form] or ("0", "1")], x)
    assert type(run(model.neck, run(model.stem, x))) is type(run(stock.neck, run(stock.stem, x)))


@pytest.mark.parametrize("form", ["list", "tuple", "named", "dict"])
def test_each_map_of_a_compiled_model(form):
    stock, x = build(Detector, form), image(2, 3, 8, 8)
    model = inject(copy.deepcopy(stock), rule(block="Pyramid", after="output"), example_inputs=x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_attended(run(compiled, x), stock, [f"neck:{key}" for key in FORMS[form] or ("0", "1")], x)


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "ordered"])
@pytest.mark.parametrize("index", [0, 1])
def test_one_map_by_its_key(form, index):
    stock, key = build(Detector, form), FORMS[form][index]
    x = image(2, 3, 8, 8)
    model = inject(copy.deepcopy(stock), rule(path=f"neck:{key}", after="output"), example_inputs=x)
    assert [insertion.path for insertion in injected(model)] == [f"neck:{key}"]
    assert_like_hooks(model, stock, [f"neck:{key}"], x)


class Nested(Pyramid):
    def forward(self, x):
        return {
            "list beside a map": lambda: (self.low(x), [self.high(x), 1]),
            "dict beside a map": lambda: [self.low(x), {"p4": self.high(x)}],
            "nothing else": lambda: ([self.low(x)], self.high(x).mean((2, 3))),
            "read inside": lambda: ([low := self.low(x)], low.mean((2, 3))),
        }[self.form]()


class ReadsNested(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.neck = Nested(form)
        self.neck.low, self.neck.high = conv(3), conv(3, stride=2)

    def forward(self, x):
        one, more = self.neck(x)
        return one, more


@pytest.mark.parametrize(
    ("form", "taken", "missed"),
    [("list beside a map", ["neck:0"], "neck:1:0"), ("dict beside a map", ["neck:0"], "neck:1:p4")],
)
def test_a_map_in_a_nested_list_or_dict_is_a_near_miss_that_names_it(form, taken, missed):
    model = build(ReadsNested, form)
    planned = plan(model, rule(block="Nested", after="output"), example_inputs=image(2, 3, 8, 8))
    assert [insertion.path for insertion in planned.insertions] == taken
    assert [skip.path for skip in planned.skips if f"path: {missed}" in skip.reason] == [missed]
    for path, sites in ((missed, [missed]), ("neck*", [*taken, "neck.high"])):
        named = plan(model, rule(path=path, after="output"), example_inputs=image(2, 3, 8, 8))
        assert {insertion.path for insertion in named.insertions} == set(sites)
        assert not any("is nested" in skip.reason for skip in named.skips)


def test_a_block_whose_maps_are_all_nested_names_one():
    model = build(ReadsNested, "nothing else")
    with pytest.raises(NoMatchError, match="neck:0:0"):
        plan(model, rule(block="Nested", after="output"), example_inputs=image(2, 3, 8, 8))


def test_a_nested_map_that_the_block_reads_too_is_refused():
    model = build(ReadsNested, "read inside")
    with pytest.raises(NoMatchError, match=r"neck:0:0(.|\n)*nested 2 levels deep"):
        plan(model, rule(path="neck:0:0", after="output"), example_inputs=image(2, 3, 8, 8))


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_the_maps_that_a_reader_is_given(form):
    stock = build(Detector, form)
    x = image(2, 3, 8, 8)
    model = inject(copy.deepcopy(stock), rule(block="Reader", before="input"), example_inputs=x)
    assert len(injected(model)) == 2
    places = [f">head:{key}" for key in FORMS[form]]
    assert_like_hooks(model, stock, places, x)
    assert distance(run(model, x)[2], run(stock, x)[2]) == 0  # the other reader has the plain maps


def test_each_map_of_torchvisions_fpn():
    from torchvision.ops import FeaturePyramidNetwork

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = conv(3), conv(6, 8, stride=2)
            self.fpn = FeaturePyramidNetwork([6, 8], 5)

        def forward(self, x):
            one = self.one(x)
            return self.fpn(OrderedDict(a=one, b=self.two(one)))

    stock = build(Net)
    x = image(2, 3, 16, 16)
    model = inject(copy.deepcopy(stock), rule(block="FeaturePyramidNetwork", after="output"), example_inputs=x)
    assert [insertion.path for insertion in injected(model)] == ["fpn:a", "fpn:b"]
    assert_like_hooks(model, stock, ["fpn:a", "fpn:b"], x)


class Several(nn.Module):
    """Returns two maps; its own inside reads both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 4), conv(4, 4)

    def forward(self, x):
        early = self.a(x)
        return [early, self.b(early)]


class ReadsEntries(nn.Module):
    def __init__(self, entries):
        super().__init__()
        self.several, self.head, self.entries = Several(), conv(4, 4), entries

    def forward(self, x):
        found = self.several(x)
        return self.head(sum(found[entry] for entry in self.entries))


@pytest.mark.parametrize(("entries", "taken"), [((1,), [1]), ((0,), [0]), ((0, 1), [0, 1])])
def test_a_returned_map_that_only_the_block_itself_reads_is_skipped(entries, taken):
    planned = plan(
        ReadsEntries(entries).eval(),
        {"rules": [{"path": "several", "after": "output"}]},
        example_inputs=torch.rand(2, 3, 8, 8),
    )
    assert [one.path for one in planned.insertions] == [f"several:{entry}" for entry in taken]
    skipped = {skip.path: skip.reason for skip in planned.skips}
    assert all("never used" in skipped[f"several:{entry}"] for entry in {0, 1} - set(taken))


class PassesOn(nn.Module):
    """Returns a map that an `Identity` passes on, inside a list."""

    def __init__(self):
        super().__init__()
        self.block, self.pool = Block(), nn.Identity()

    def forward(self, x):
        x = self.pool(self.block(x) + 1)
        return x.mean((2, 3)), [x, x * 2]


@pytest.mark.parametrize("rules", [["*"], ["pool", ":1:0"], [":1:0", "pool"]])
def test_two_names_of_one_tensor_are_attended_once(rules):
    torch.manual_seed(1)
    x = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    plain = PassesOn().double().eval()
    model = copy.deepcopy(plain)
    exclude = ["block*", "add", "mul", ":1:1"] if rules == ["*"] else []
    inject(
        model,
        {"rules": [{"path": path, "after": "output", "optional": True} for path in rules]},
        example_inputs=x,
        exclude=exclude,
    )
    assert [insertion.edit.module for insertion in injected(model)] == ["pool"]
    with hooked(copy.deepcopy(plain), ["pool"], 1e-4, simam) as oracle, torch.no_grad():
        assert_right(model(x), oracle(x), plain(x))
    names = [{"path": path, "after": "output", "optional": True} for path in ("pool", ":1:0")]
    with pytest.warns(UserWarning, match="already have SimAM"):
        inject(model, {"rules": names}, example_inputs=x)
    assert len(injected(model)) == 1


class Getter(nn.ModuleDict):
    """As torchvision's IntermediateLayerGetter: it iterates over its children, and returns some of their maps."""

    def __init__(self):
        super().__init__({"a": conv(), "b": conv(), "c": conv()})

    def forward(self, x):
        found = {}
        for name, child in self.items():
            x = child(x)
            found[str("abc".index(name))] = x.relu() if name == "b" else x
        return found


class ListGetter(Getter):
    def forward(self, x):
        return list(super().forward(x).values())


class Got(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.heads = kind(), nn.ModuleList(conv() for _ in range(3))

    def forward(self, x):
        maps = self.body(x)
        values = maps.values() if isinstance(maps, dict) else maps
        return [head(each) for head, each in zip(self.heads, values, strict=True)]


@pytest.mark.parametrize("kind", [Getter, ListGetter])
def test_a_map_that_the_module_reads_before_it_returns_it(kind):
    """No hook inside gives SimAM's output to those alone who read what the module returns."""
    stock = build(Got, kind)
    with pytest.raises(NoMatchError, match="body reads it before returning it"):
        plan(stock, rule(path="body:0", after="output"), example_inputs=image())
    for place, reader in (("body:1", ">heads.1"), ("body:2", "body.c")):  # `>`: what only that module reads
        ours = inject(copy.deepcopy(stock), rule(path=place, after="output"), example_inputs=image())
        with torch.no_grad(), hooked(stock, [reader]):
            expected = stock(image())
        assert_right(run(ours, image()), expected, run(stock, image()))


class Hidden(nn.Module):
    """Returns two maps in a nested dict, or in what is no list, tuple or dict."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = conv(), wrap

    def forward(self, x):
        y = self.conv(x)
        return self.wrap([y, 2 * y])


class ReadsHidden(nn.Module):
    def __init__(self, wrap, unwrap):
        super().__init__()
        self.neck, self.unwrap = Hidden(wrap), unwrap

    def forward(self, x):
        return sum(self.unwrap(self.neck(x)))


@pytest.mark.parametrize(
    ("wrap", "unwrap", "target", "message"),
    [
        (iter, list, "output", "returns no tensor, and none in a list, tuple or dict"),
        (lambda maps: SimpleNamespace(maps=maps), lambda out: out.maps, "output", "returns no tensor"),
        (lambda maps: {"maps": maps}, lambda out: out["maps"], "output:0", "the maps neck:maps:0, neck:maps:1"),
    ],
)
def test_the_reason_says_what_is_returned(wrap, unwrap, target, message):
    with pytest.raises(NoMatchError, match=message):
        plan(ReadsHidden(wrap, unwrap).double(), {"rules": [{"path": "neck", "after": target}]}, example_inputs=image())
