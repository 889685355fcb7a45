"""Outputs of any class are compared, NaN and infinity included; where nothing can be compared, the check says so."""

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch import nn

from simam_inject import InjectError, SimAM, eject, inject, injected, plan, simam, verify
from simam_inject.errors import NoMatchError, VerificationError
from simam_inject.nested import tensors_of
from simam_inject.verification.outputs import difference
from tests.engine.blocks import Block, Net, conv
from tests.oracle import E_LAMBDA, assert_right, attend, same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))
INF, NAN = float("inf"), float("nan")
LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("one", "other"),
    [(NAN, 0.0), (0.0, NAN), (INF, LARGEST), (INF, NAN), (-INF, INF), (1.0, 1.5), (complex(NAN, 0), 0j)],
)
def test_outputs_that_differ(one, other):
    assert difference(torch.tensor([1.0, one]), torch.tensor([1.0, other])) is not None


@pytest.mark.parametrize("values", [[NAN, 1.0], [INF, -INF], [1.0], [True], [complex(NAN, 1)]])
def test_outputs_that_are_equal(values):
    assert difference(torch.tensor(values), torch.tensor(values)) is None


def test_sparse_outputs_are_compared():
    one, other = torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()
    assert difference(one, one.clone()) is None
    assert "Greatest absolute difference: 1.0" in difference(one, other)


def test_outputs_of_mkldnn_are_compared():
    assert difference(X.to_mkldnn(), X.to_mkldnn()) is None
    assert "Greatest absolute difference: 1.0" in difference(X.to_mkldnn(), X.add(1.0).to_mkldnn())


class Result:
    def __init__(self, scores):
        self.scores, self.source = scores, self


class Slotted:
    __slots__ = ("scores",)

    def __init__(self, scores):
        self.scores = scores


class Returns(Net):
    def __init__(self, kind):
        super().__init__(Block())
        self.kind = kind

    def forward(self, x):
        return self.kind(super().forward(x))


@pytest.mark.parametrize("kind", [Result, Slotted, lambda scores: [Result(scores)]])
def test_an_output_of_any_class_is_looked_into(kind, monkeypatch):
    model = inject(Returns(kind).eval(), "after block.a", example_inputs=X)
    assert len(list(tensors_of(model(X)))) == 1
    assert verify(model, example_inputs=X).ok
    monkeypatch.setattr(SimAM, "forward", lambda self, x: x + 1)
    failed = {check.name for check in verify(model, example_inputs=X).checks if check.ok is False}
    assert "bypassed: equal to the original in eval mode" in failed
    assert "equal to the formula in hooks on the original, at another input size" in failed


@pytest.mark.parametrize(
    "kind",
    [
        Result,
        Slotted,
        lambda y: {b"p": y},
        lambda y: {nn.Conv2d: y},
        lambda y: {frozenset("pq"): y},
        lambda y: {y},
        lambda y: deque([y]),
        lambda y: {"p": y}.values(),
    ],
)
def test_what_only_such_an_output_holds_is_used(kind):
    stock = Returns(kind).double().eval()
    model = inject(copy.deepcopy(stock), "after block.b", e_lambda=E_LAMBDA, example_inputs=X.double())
    ((found,), (plain,)) = (list(tensors_of(one(X.double()))) for one in (model, stock))
    assert_right(found, attend(plain), plain)


def test_objects_that_refer_to_each_other_are_looked_into_once():
    entry = X
    for _ in range(40):  # 2**40 ways lead to the tensor
        entry = SimpleNamespace(one=entry, other=[entry])
    assert len(list(tensors_of([entry, entry]))) == 2
    assert len(list(tensors_of([[X], [X]]))) == 2


def test_an_output_without_tensors_proves_nothing():
    model = inject(Returns(lambda scores: scores.tolist()).eval(), "after block.a", example_inputs=X)
    checks = {check.name: check for check in verify(model, example_inputs=X).checks}
    for name in (
        "bypassed: equal to the original in eval mode",
        "bypassed: equal to the original in train mode",
        "equal to the formula in hooks on the original, at another input size",
    ):
        assert (checks[name].ok, checks[name].detail) == (None, "the output, a list, holds no tensors to compare")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_child_takes_no_hooks():
    model = Net(Block()).eval()
    model.block.a = torch.jit.script(model.block.a)
    with pytest.raises(NoMatchError, match=r"block\.a: is a torch\.jit\.ScriptModule"):
        inject(model, "after block.a", example_inputs=X)
    inject(model, "after block", example_inputs=X)
    assert verify(model).ok


# Containers of any class: what the block returns keeps its class, its attributes and its other entries


class Maps(list):
    @property
    def last(self):
        return self[-1]


class Features(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Pair(tuple):
    __slots__ = ()

    def total(self):
        return self[0] + 2 * self[1]


class Named(namedtuple("Named", "p q")):
    __slots__ = ()

    def total(self):
        return self.p + 2 * self.q


class Doubled(namedtuple("Doubled", "p q")):
    """Its constructor takes other arguments than its fields."""

    __slots__ = ()

    def __new__(cls, p, q, factor=2):
        return super().__new__(cls, p, factor * q)


@dataclass
class Both:
    p: torch.Tensor
    q: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    p: torch.Tensor
    q: torch.Tensor


def tagged(p, q):
    maps = Maps([p, q])
    maps.scale = 3.0
    return maps


def class_of(maps):
    """A number that tells the classes of containers apart."""
    return 3 if isinstance(maps, (Maps, Features, Pair)) else 2


CONTAINERS = {
    "list": (lambda p, q: [p, q], lambda maps: maps[0] + 2 * maps[1]),
    "list class": (lambda p, q: Maps([p, q]), lambda maps: maps.last * 2 + maps[0]),
    "list class, asked for": (lambda p, q: Maps([p, q]), lambda maps: maps[0] + maps[1] * class_of(maps)),
    "list with an attribute": (tagged, lambda maps: maps[0] + maps[1] * maps.scale),
    "dict class": (lambda p, q: Features(p=p, q=q), lambda maps: maps.p + 2 * maps.q),
    "dict class, asked for": (lambda p, q: Features(p=p, q=q), lambda maps: maps["p"] + maps["q"] * class_of(maps)),
    "ordered dict": (lambda p, q: OrderedDict(p=p, q=q), lambda maps: maps["p"] + 2 * maps.popitem()[1]),
    "default dict": (lambda p, q: defaultdict(lambda: 4.0, p=p, q=q), lambda maps: maps["p"] + maps["r"] * maps["q"]),
    "user dict": (lambda p, q: UserDict(p=p, q=q), lambda maps: maps["p"] + 2 * maps["q"]),
    "tuple class": (lambda p, q: Pair([p, q]), lambda maps: maps.total()),
    "tuple class, asked for": (lambda p, q: Pair([p, q]), lambda maps: maps[0] + maps[1] * class_of(maps)),
    "named tuple class": (Named, lambda maps: maps.total()),
    "named tuple, own constructor": (lambda p, q: Doubled(p, q, 1), lambda maps: maps.p + 2 * maps.q),
    "dataclass": (Both, lambda maps: maps.p + 2 * maps.q),
    "frozen dataclass": (Frozen, lambda maps: maps.p + 2 * maps.q),
    "cummax": (lambda p, q: (p + q).cummax(3), lambda maps: maps.values + maps.indices),
    "sort": (lambda p, q: (p - q).sort(3), lambda maps: maps.values * (maps.indices + 1)),
}  # fmt: skip


class Returns2(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.c, self.d, self.make = conv(3), conv(3), make

    def forward(self, x):
        return self.make(self.c(x), self.d(x))


class Reader(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.t, self.read = conv(), read

    def forward(self, maps):
        return self.t(self.read(maps))


class Containers(nn.Module):
    """`attend` stands between the two in the oracle: on each floating point map."""

    def __init__(self, make, read):
        super().__init__()
        torch.manual_seed(4)
        self.f, self.r = Returns2(make), Reader(read)
        self.double().eval()

    def forward(self, x):
        return self.r(self.f(x))


READ = ["list", "ordered dict", "named tuple class"]
"""Containers whose entries are found in what a module is given."""


@pytest.mark.parametrize(
    ("name", "where"), [*[(name, "after") for name in CONTAINERS], *[(name, "before") for name in READ]]
)
def test_a_container_keeps_its_class(name, where):
    make, read = CONTAINERS[name]

    def make_attended(p, q):
        if name in ("cummax", "sort"):
            whole = make(p, q)
            return SimpleNamespace(values=attend(whole.values), indices=whole.indices)
        return make(attend(p), attend(q))

    x = X.double()
    stock, oracle, model = Containers(make, read), Containers(make_attended, read), Containers(make, read)
    rule = {"path": "f", "after": "output"} if where == "after" else {"path": "r", "before": "input"}
    inject(model, {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=x)
    assert len(injected(model)) == (1 if name in ("cummax", "sort") else 2)
    with torch.no_grad():
        assert_right(model(x), oracle(x), stock(x))
    assert verify(model).ok


class Keeps(nn.Module):
    """Keeps the list that it returns, and looks at it later."""

    def __init__(self):
        super().__init__()
        self.c, self.d, self.outs = conv(3), conv(3), []

    def forward(self, x):
        self.outs = [self.c(x), self.d(x)]
        return self.outs


class ReadsKept(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.t = Keeps(), conv()

    def forward(self, x):
        found = self.f(x)
        found.append(found[0] + found[1])
        return self.t(self.f.outs[-1]) - found[0]


class WritesBack(nn.Module):
    """Writes into the list that it is given."""

    def __init__(self):
        super().__init__()
        self.a = conv()

    def forward(self, maps):
        maps[0] = self.a(maps[0])
        maps.append(maps[0] + maps[1])


class ReadsWritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d, self.head, self.t = conv(3), conv(3), WritesBack(), conv()

    def forward(self, x):
        maps = [self.c(x) * 2, self.d(x) * 3]
        self.head(maps)
        return self.t(maps[-1]) - maps[0]


class WritesKey(WritesBack):
    def forward(self, maps):
        maps["o"] = self.a(maps["p"]) + maps["q"]


class ReadsKey(ReadsWritten):
    def __init__(self):
        super().__init__()
        self.head = WritesKey()

    def forward(self, x):
        maps = {"p": self.c(x) * 2, "q": self.d(x) * 3}
        self.head(maps)
        return self.t(maps["o"])


class WithoutUpdate(OrderedDict):
    """As the `ModelOutput` of transformers."""

    def update(self, *args, **kwargs):
        raise TypeError("this dict has no update")

    clear = pop = popitem = update


class WritesOwnDict(ReadsKey):
    def forward(self, x):
        maps = WithoutUpdate()
        maps["p"], maps["q"] = self.c(x) * 2, self.d(x) * 3
        self.head(maps)
        return self.t(maps["o"])


class Last(nn.Module):
    def forward(self, maps):
        return sum(maps.values())


class ByResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return {1024: self.c(x), 10**6: self.d(x)}


def test_a_large_number_is_a_key_in_a_pickle_too():
    model = nn.Sequential(ByResolution(), Last()).eval()
    x = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=x)
    assert [one.path for one in injected(pickle.loads(pickle.dumps(model)))] == ["0:1024", "0:1000000"]


class Level(Enum):
    LOW = 1


class ByKey(ByResolution):
    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, x):
        return {self.key: self.c(x) * 2, "z": self.d(x)}


@pytest.mark.parametrize("key", [("p", 3), Level.LOW, None, 0.5], ids=str)
def test_keys_that_are_neither_text_nor_numbers(key):
    stock = nn.Sequential(ByKey(key), Last()).eval()
    x = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    model = inject(copy.deepcopy(stock), {"rules": [{"path": "0", "after": "output"}]}, example_inputs=x)
    assert [one.path for one in injected(pickle.loads(pickle.dumps(model)))] == [f"0:{key}", "0:z"]
    maps = stock[0](x)
    assert torch.allclose(model(x), simam(maps[key]) + simam(maps["z"]), atol=1e-6)
    alone = inject(copy.deepcopy(stock[0]), {"rules": [{"path": "c", "after": "output"}]}, example_inputs=x)
    assert torch.allclose(alone(x)[key], 2 * simam(stock[0].c(x)), atol=1e-6)
    alone = eject(model)[0]
    inject(alone, {"rules": [{"path": "mul", "after": "output"}]}, example_inputs=x)
    assert torch.allclose(alone(x)[key], simam(maps[key]), atol=1e-6)


class AttrDict(dict):
    """As in many repositories: keys are attributes."""

    def __init__(self, **entries):
        super().__init__(**entries)
        self.__dict__ = self


class KeepsFirst(dict):
    def __init__(self, **entries):
        super().__init__(**entries)
        self.first = entries["p"]


class KeepsList(dict):
    def __init__(self, **entries):
        super().__init__(**entries)
        self.maps = list(entries.values())


class TwoMaps(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.c, self.d, self.kind = conv(3, 4), conv(3, 4), kind

    def forward(self, x):
        return self.kind(p=self.c(x), q=self.d(x))


class ReadsAttributes(nn.Module):
    def __init__(self, kind, read):
        super().__init__()
        self.f, self.t, self.read = TwoMaps(kind), conv(4, 4), read

    def forward(self, x):
        p, q = self.read(self.f(x))
        return self.t(p - 2 * q)


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (AttrDict, lambda maps: (maps.p, maps.q)),
        (KeepsFirst, lambda maps: (maps.first, maps["q"])),
        (KeepsList, lambda maps: maps.maps),
    ],
)
def test_attributes_that_hold_the_entries_of_a_container_are_attended_too(kind, read):
    stock = ReadsAttributes(kind, read).double().eval()
    x, rule = X.double(), {"e_lambda": E_LAMBDA, "rules": [{"path": "f", "after": "output"}]}
    model = inject(copy.deepcopy(stock), rule, example_inputs=x)
    wanted = stock.t(attend(stock.f.c(x)) - 2 * attend(stock.f.d(x)))
    assert (model(x) - wanted).abs().max() < 1e-10
    assert (model(x) - stock(x)).abs().max() > 1e-3


@pytest.mark.parametrize("other_threads", [0, 1])
def test_a_container_that_cannot_be_copied_is_refused(other_threads):
    """Beside other threads, which may draw random numbers, `verify` runs an unequal pair again."""
    stock = ReadsAttributes(lambda **maps: MappingProxyType(maps), lambda maps: (maps["p"], maps["q"])).eval()
    with ThreadPoolExecutor() as threads:
        assert [*threads.map(int, range(other_threads))] == [*range(other_threads)]
        with pytest.raises(InjectError, match="a mappingproxy cannot be copied"):
            inject(stock, {"rules": [{"path": "f", "after": "output"}]}, example_inputs=X)


class Slimmable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.width = nn.Parameter(torch.randn(8, 3, 3, 3)), 8

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight[: self.width], padding=1)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 3, 8, 12), (8, 3, 12, 12), (2, 3, 16, 16)])
@pytest.mark.parametrize("site", ["0", "1"])
def test_fewer_channels_are_no_other_layout(site, shape):
    stock = nn.Sequential(Slimmable(), nn.MaxPool2d(2)).double().eval()
    rule, x = {"e_lambda": E_LAMBDA, "rules": [{"path": site, "after": "output"}]}, torch.rand(shape).double()
    model = inject(copy.deepcopy(stock), rule, example_inputs=X.double())  # 8 channels of 8 x 8
    model[0].width = stock[0].width = 6
    wanted = attend(stock(x)) if site == "1" else stock[1](attend(stock[0](x)))
    assert (model(x) - wanted).abs().max() < 1e-10
    assert (model(x) - stock(x)).abs().max() > 1e-3


@pytest.mark.parametrize("rule", ["after conv1d", "before batchnorm1d"])
def test_a_pruned_convolution_has_the_planned_layout_at_any_size(rule):
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8, affine=False, track_running_stats=False))
    inject(model, rule, example_inputs=torch.rand(2, 3, 12))
    model[0].weight, model[0].bias = (nn.Parameter(one.detach()[:6]) for one in (model[0].weight, model[0].bias))
    assert model(torch.rand(8, 3, 10)).shape == (8, 6, 8)


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(3)

    def forward(self, x):
        return [self.a(x), self.b(x)]


class KeptPyramid(Pyramid):
    def forward(self, x):
        self.kept = {"a": self.a(x), "b": self.b(x)}
        return self.kept


class Overwrites(nn.Module):
    """Writes into the first entry of the list that it is given."""

    def __init__(self):
        super().__init__()
        self.c = conv()

    def forward(self, maps):
        maps[0] = self.c(maps[0])
        return maps


class OverwritesOnly(Overwrites):
    def forward(self, maps):
        super().forward(maps)


class TwoReaders(nn.Module):
    """What the neck writes into its list is read by others, or they hold the same container."""

    def __init__(self, pyramid=Pyramid, neck=Overwrites, reads_return=False):
        super().__init__()
        self.p, self.neck, self.head, self.reads_return = pyramid(), neck(), conv(), reads_return

    def forward(self, x):
        maps = self.p(x)
        if isinstance(maps, dict):
            return self.head(maps["a"]) + self.p.kept["a"] * maps["b"]
        returned = self.neck(maps)
        maps = returned if self.reads_return else maps
        return self.head(maps[0]) * maps[1]


class OwnList(list):
    pass


class OwnPyramid(Pyramid):
    def forward(self, x):
        return OwnList(super().forward(x))


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize(
    ("factory", "rule"),
    [
        (TwoReaders, {"path": "neck", "before": "input"}),
        (lambda: TwoReaders(OwnPyramid), {"path": "neck", "before": "input"}),
        (lambda: TwoReaders(neck=OverwritesOnly), {"path": "neck", "before": "input"}),
        (lambda: TwoReaders(KeptPyramid), {"path": "p:a", "after": "output"}),
        (ReadsKept, {"path": "f", "after": "output"}),
        (ReadsWritten, {"path": "head", "before": "input"}),
        (ReadsKey, {"path": "head", "before": "input"}),
        (WritesOwnDict, {"path": "head", "before": "input"}),
    ],
)
def test_a_container_that_is_written_or_kept_is_refused(factory, rule, strength):
    torch.manual_seed(4)
    stock = factory().double().eval()
    model = copy.deepcopy(stock)
    with pytest.raises(VerificationError, match="equal to the formula in hooks on the original"):
        inject(model, {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=X.double(), strength=strength)
    assert injected(model) == ()
    assert same_bits(model(X.double()), stock(X.double()))


class Predicts(Overwrites):
    """As YOLO's Detect: what it was given is in what it returns."""

    def forward(self, maps):
        return {0: maps[0] + maps[1], "maps": super().forward(maps)}


class Predictor(TwoReaders):
    def forward(self, x):
        return self.neck(self.p(x))


@pytest.mark.parametrize("factory", [lambda: TwoReaders(reads_return=True), lambda: Predictor(neck=Predicts)])
def test_a_container_that_is_written_and_returned_is_attended(factory):
    torch.manual_seed(4)
    stock = factory().double().eval()
    model = copy.deepcopy(stock)
    x = X.double()
    rule = {"path": "neck", "before": "input"}
    inject(model, {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=x)
    assert [site.path for site in injected(model)] == ["p:0", "p:1"]
    with torch.no_grad():
        plain = stock(x)
        stock.neck.register_forward_pre_hook(lambda _, args: ([attend(each) for each in args[0]],))
        assert_right(model(x), stock(x), plain)


class Joins(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, maps):
        return self.c(torch.cat(maps, 1))


class Collector(nn.Module):
    """Hooks add maps to a list, also while a module runs that was given this very list."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.join, self.head, self.maps = conv(3), conv(), Joins(), conv(), []
        for module in (self.a, self.b, self.join.c):
            module.register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.maps.append(output)

    def forward(self, x):
        self.maps.clear()
        self.b(self.a(x))
        self.join(self.maps)
        return self.head(self.maps[-1])


def test_a_list_that_grows_while_a_module_that_is_given_it_runs():
    torch.manual_seed(4)
    stock = Collector().double().eval()
    model = copy.deepcopy(stock)
    x = X.double()
    inject(model, {"e_lambda": E_LAMBDA, "rules": [{"path": "join", "before": "input"}]}, example_inputs=x)
    assert [site.path for site in injected(model)] == ["a", "b"]
    with torch.no_grad():
        first = stock.a(x)
        maps = [first, stock.b(first)]
        plain = stock.head(stock.join.c(torch.cat(maps, 1)))
        expected = stock.head(stock.join.c(torch.cat([attend(one) for one in maps], 1)))
        assert_right(model(x), expected, plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("rule", "is_hit"),
    [
        ({"block": "Block", "after": "output"}, True),
        ({"structure": "main", "after": "output"}, False),
        ({"path": "*", "after": {"op": "conv2d"}}, False),
        ({"pattern": "conv2d"}, False),
    ],
)
def test_a_plan_lists_blocks_that_are_scripted(rule, is_hit):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), torch.jit.script(Block()), Block())
    found = plan(net.eval(), {"rules": [rule]}, example_inputs=torch.rand(2, 3, 16, 16))
    assert found.insertions
    reasons = {skip.path: (skip.reason, skip.hit) for skip in found.skips if skip.path.startswith("2")}
    assert reasons == {"2": ("is a torch.jit.ScriptModule, whose operations cannot be recorded", is_hit)}
    rule["exclude"] = "2"
    found = plan(net, {"rules": [rule]}, example_inputs=torch.rand(2, 3, 16, 16))
    assert all(skip.reason == "excluded by 2" for skip in found.skips if skip.path == "2")
