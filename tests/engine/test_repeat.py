"""Injecting again, more, nested, and back; and all or nothing when something fails midway."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from simam_inject import SimAM, api, eject, inject, injected, plan, simam, verify
from simam_inject.editing import attach
from simam_inject.errors import InjectError, ModelError, NoMatchError
from tests.engine.blocks import Block, Net, conv
from tests.engine.snapshot import snapshot
from tests.oracle import assert_right, hooked, same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


def network():
    torch.manual_seed(1)
    return nn.Sequential(conv(3, 4), Net2(), Net2()).eval()


class Net2(nn.Module):
    """A block in a block."""

    def __init__(self):
        super().__init__()
        self.inner = Block()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.inner(x)) + x


def paths(model):
    return sorted(insertion.path for insertion in injected(model))


def oracle(plain, attended, e_lambda=1e-4):
    with hooked(plain, attended, e_lambda, simam), torch.no_grad():
        return plain(X)


def run(model):
    with torch.no_grad():
        return model(X)


def test_injecting_twice_changes_nothing_and_says_so():
    model = inject(network(), "after block.a", example_inputs=X)
    before = snapshot(model)
    with pytest.warns(UserWarning, match="nothing to inject: all 2 sites already have SimAM"):
        assert inject(model, "after block.a", example_inputs=X) is model
    assert snapshot(model) == before
    again = plan(model, "after block.a", example_inputs=X)
    assert again.insertions == ()
    assert [insertion.path for insertion in again.present] == ["1.inner.a", "2.inner.a"]


def test_another_lambda_is_refused_and_not_ignored():
    model = inject(network(), "after block.a", example_inputs=X)
    recipe = {"e_lambda": 0.5, "rules": [{"block": "block", "after": "a"}]}
    before = snapshot(model)
    told = "1.inner.a: already has SimAM, with e_lambda 0.0001 instead of 0.5; call eject(model) first"
    for action in (inject, plan):
        with pytest.raises(NoMatchError, match=r"rules\[0\] \(block block, after a\) matched 2 sites, but") as caught:
            action(model, recipe, example_inputs=X)
        assert told in str(caught.value)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "order",
    [
        ("after block.a", "after net2", "after block.b"),
        ("after net2", "after block.b", "after block.a"),
        ("after block.b", "after block.a", "after net2"),
    ],
)
def test_more_recipes_one_after_the_other(order):
    plain, model = network(), network()
    attended = {"after block.a": "inner.a", "after net2": "", "after block.b": "inner.b"}
    there = []
    for recipe in order:
        inject(model, recipe, example_inputs=X)
        there += [f"{block}.{attended[recipe]}".rstrip(".") for block in (1, 2)]
        assert paths(model) == sorted(there)
        assert same_bits(run(model), oracle(plain, there))
        assert verify(model, example_inputs=X).ok
    eject(model)
    assert same_bits(run(model), run(plain))
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


def test_a_value_of_two_names_is_attended_once():
    model = inject(network(), {"rules": [{"block": "block", "after": "output"}]}, example_inputs=X)
    with pytest.warns(UserWarning, match="nothing to inject"):
        inject(model, "after block.b", example_inputs=X)  # what `b` returns is what the block returns
    assert len(injected(model)) == 2


def test_an_outer_and_an_inner_site_in_one_recipe():
    plain = network()
    rules = [
        {"block": "net2", "after": "output"},
        {"block": "net2", "after": "inner"},
        {"block": "block", "after": "a"},
    ]
    for ordered in (rules, rules[::-1]):
        model = inject(network(), {"rules": ordered}, example_inputs=X)
        attended = [f"{block}{name}" for block in (1, 2) for name in ("", ".inner", ".inner.a")]
        assert paths(model) == sorted(attended)
        assert same_bits(run(model), oracle(plain, attended))


def test_eject_twice_and_without_simam():
    model, plain = network(), network()
    assert eject(model) is model
    inject(model, "after block.a", example_inputs=X)
    eject(eject(model))
    assert injected(model) == ()
    assert same_bits(run(model), run(plain))
    assert not any("simam" in name for module in model.modules() for name in module.__dict__)


def test_modules_added_and_trained_while_injected_survive_eject():
    model = inject(network(), "after block.a", example_inputs=X)
    model[1].inner.extra = nn.Linear(2, 2)
    model[1].note = "mine"
    with torch.no_grad():
        model[1].inner.a.weight.add_(1)
    model.train()
    expected = model.state_dict()
    eject(model)
    assert model[1].note == "mine"
    assert all(module.training for module in model.modules())
    assert list(model.state_dict()) == list(expected)
    assert all(map(torch.equal, model.state_dict().values(), expected.values()))


def test_a_plan_is_applied_once_and_to_the_planned_model():
    model = network()
    planned = plan(model, "after block.a", example_inputs=X)
    assert injected(model) == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "update", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            planned.apply()
    assert not injected(model)
    assert planned.apply() is model
    assert injected(model) == planned.insertions
    with pytest.raises(ModelError, match="has changed since the plan was made"):
        planned.apply()
    other = plan(network(), "after block.a", example_inputs=X)
    other.apply()
    changed = network()
    stale = plan(changed, "after block.a", example_inputs=X)
    changed[1].inner = Block()
    before = snapshot(changed)
    with pytest.raises(ModelError, match="has changed since the plan was made"):
        stale.apply()
    assert snapshot(changed) == before


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("present", [False, True], ids=["fresh", "onto another"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_failure_midway_leaves_everything_as_it_was(monkeypatch, step, present, error):
    model = network()
    if present:
        inject(model, "after block.b", example_inputs=X)
        model[1].inner.register_forward_hook(lambda module, args, output: None)
        next(m for m in model.modules() if isinstance(m, SimAM)).mark = "the very same object"
    before, expected = snapshot(model), run(model)
    real, calls = SimAM.__init__, []

    def failing(attention, *args, **kwargs):
        calls.append(args)
        if len(calls) == step + 1:
            raise error("midway")
        real(attention, *args, **kwargs)

    monkeypatch.setattr(SimAM, "__init__", failing)
    rules = [{"block": "block", "after": "a"}, {"block": "net2", "after": "output"}]
    with pytest.raises(error, match="midway"):
        inject(model, {"rules": rules}, example_inputs=X)
    assert len(calls) == step + 1
    monkeypatch.undo()
    assert snapshot(model) == before
    assert same_bits(run(model), expected)
    inject(model, {"rules": rules}, example_inputs=X)
    assert len(injected(model)) == 4 + 2 * present


@pytest.mark.parametrize("step", range(1, 4))
def test_a_hook_that_fails_midway(monkeypatch, step):
    model = network()
    before = snapshot(model)
    real, calls = attach.OutputHook.put_on, []

    def failing(hook, module):
        calls.append(hook)
        if len(calls) == step:
            raise MemoryError("midway")
        real(hook, module)

    monkeypatch.setattr(attach.OutputHook, "put_on", failing)
    rules = [{"block": "block", "after": "a"}, {"block": "net2", "after": "output"}]
    with pytest.raises(MemoryError, match="midway"):
        inject(model, {"rules": rules}, example_inputs=X)
    assert snapshot(model) == before


class Sensitive(Block):
    """Everything that an inspection could disturb."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.cache = {"calls": []}

    def forward(self, x):
        self.cache["last"] = tuple(x.shape)
        noise = torch.rand(1) + random.random() + float(np.random.rand())
        return self.drop(self.norm(self.b(self.a(x)))) + noise


@pytest.mark.parametrize("training", [False, True])
def test_inspection_leaves_no_trace(training):
    torch.manual_seed(1)
    model = Net(Sensitive()).train(training)
    model.block.norm.eval()
    model.stem.weight.requires_grad_(False)
    model(X).sum().backward()
    fired = []

    def once(*_):
        fired.append(1)
        handle.remove()

    handle = model.block.a.register_forward_hook(once)
    states = [random.getstate(), np.random.get_state()[1].tolist()]
    before = snapshot(model)
    planned = plan(model, "after sensitive.a", example_inputs=X)
    assert str(planned)
    assert planned.to_dict()["insertions"]
    assert snapshot(model) == before
    assert [random.getstate(), np.random.get_state()[1].tolist()] == states
    assert not fired
    assert len(model.block.a._forward_hooks) == 1


def test_injection_itself_moves_no_state():
    torch.manual_seed(1)
    model = Net(Net2())
    model(X).sum().backward()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    inject(model, "after block.a", example_inputs=X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert all(gradients[name] is parameter.grad for name, parameter in model.named_parameters())
    assert modes == {name: m.training for name, m in model.named_modules() if not isinstance(m, SimAM)}
    assert all(module.training for module in model.modules() if isinstance(module, SimAM))


def test_under_inference_mode_and_no_grad():
    for context in (torch.inference_mode, torch.no_grad):
        model, plain = network(), network()
        with context():
            inject(model, "after block.a", example_inputs=X)
        assert same_bits(run(model), oracle(plain, ["1.inner.a", "2.inner.a"]))
        model(X).sum().backward()
        assert model[0].weight.grad is not None


def test_names_in_use_are_stepped_aside():
    class Taken(Block):
        def __init__(self):
            super().__init__()
            self.simam_a = nn.Identity()

        def forward(self, x):
            return self.simam_a(self.b(self.a(x)))

    model = Net(Taken()).eval()
    plain = copy.deepcopy(model)
    inject(model, "after taken.a", example_inputs=X)
    assert isinstance(model.block.simam_a, nn.Identity)
    with hooked(plain, ["block.a"], 1e-4, simam):
        assert same_bits(model(X), plain(X))
    eject(model)
    assert isinstance(model.block.simam_a, nn.Identity)


# A part and the whole


class TrainsWithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.aux = conv(3, 4), Block()

    def forward(self, x):
        y = self.stem(x)
        return self.aux(y) if self.training else y * 2


def with_head():
    torch.manual_seed(1)
    model = TrainsWithHead().eval()
    inject(model.aux, "after block.a", example_inputs=torch.rand(1, 4, 8, 8))
    return model


def test_a_part_that_was_injected_and_the_whole():
    model, plain = with_head(), with_head()
    eject(plain.aux)
    planned = plan(model, "after trainswithhead.stem", example_inputs=X)
    assert [insertion.path for insertion in planned.present] == ["aux.a"]
    inject(model, "after trainswithhead.stem", example_inputs=X)
    assert paths(model) == ["aux.a", "stem"]
    assert [insertion.module for insertion in injected(model)] == ["stem.simam", "aux.a.simam"]
    assert [insertion.path for insertion in injected(model.aux)] == ["a"]
    found = verify(model, example_inputs=X)
    assert found.ok
    assert any("does not reach aux.a" in check.detail for check in found.checks)
    with hooked(plain, ["stem", "aux.a"], 1e-4, simam), torch.no_grad():
        assert same_bits(model.train()(X), plain.train()(X))


def test_ejecting_the_whole_takes_the_part_along():
    model = eject(with_head())
    assert injected(model) == ()
    assert not any("simam" in str(key) for module in model.modules() for key in module._forward_pre_hooks)
    model.train()(X)


def test_a_failure_on_the_whole_leaves_the_part(monkeypatch):
    model = with_head()
    monkeypatch.setattr("simam_inject.api.check_model", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inject(model, "after trainswithhead.stem", example_inputs=X)
    assert paths(model) == ["aux.a"]
    model.train()(X)


def change_lambda(attention, _seen):
    attention.e_lambda = 0.7


def change_bypass(attention, _seen):
    attention.bypassed = True


def add_hook(attention, seen):
    attention.register_forward_hook(lambda *_: seen.append(1))


@pytest.mark.parametrize("change", [change_lambda, change_bypass, add_hook])
def test_what_the_user_set_on_a_simam_stays_at_a_second_injection(change):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=torch.rand(2, 3, 16, 16))
    attention, seen = model[0].simam, []
    change(attention, seen)
    before = (attention.e_lambda, attention.bypassed, len(attention._forward_hooks))
    rule = {"rules": [{"path": "1", "after": "output"}]}
    inject(model, rule, example_inputs=torch.rand(2, 3, 16, 16), verify=False)
    assert model[0].simam is attention
    assert (attention.e_lambda, attention.bypassed, len(attention._forward_hooks)) == before
    assert len(injected(model)) == 2
    model(torch.rand(2, 3, 16, 16))
    assert len(seen) == before[2]


class Scale(nn.Module):
    """A peer with a parameter: one factor for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.factor = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x):
        return x * self.factor


def test_a_peer_stays_at_a_second_injection():
    model = network()
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X, attention=Scale)
    peer, before = model[0].simam, model(X)
    inject(model, {"rules": [{"path": "2", "after": "output"}]}, example_inputs=X)
    assert model[0].simam is peer
    with hooked(network(), {"2": 1}, 1e-4, simam) as stock, torch.no_grad():
        stock[0].weight.mul_(0.5)
        stock[0].bias.mul_(0.5)
        assert torch.allclose(model(X), stock(X), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(X), before, rtol=1e-2)


def test_eject_takes_out_a_peer_whose_hook_was_dropped():
    model = network()
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X, attention=Scale)
    model[0]._forward_hooks.clear()
    eject(model)
    assert list(model.state_dict()) == list(network().state_dict())
    assert same_bits(model(X), network()(X))


class Reordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv(4, 4)

    def forward(self, x, y):
        return self.c(x) + y


class Caller(nn.Module):
    def __init__(self, by_name=False):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.k, self.by_name = conv(3, 4), Reordered(), by_name

    def forward(self, x):
        x = self.stem(x)
        t = x * 2 + x
        return self.k(y=t, x=x * 3) if self.by_name else self.k(t, x * 3)


@pytest.mark.parametrize("by_name", [False, True])
def test_arguments_are_counted_by_the_forward_that_stands_on_the_instance(by_name):
    model = Caller().eval()
    model.k.forward = lambda y, x: model.k.c(y) + x
    inject(model, {"rules": [{"path": "k", "before": "input", "exclude": ["mul*"]}]}, example_inputs=X)
    stock = Caller().eval()
    model.by_name = by_name
    x = stock.stem(X)
    t = simam(x * 2 + x)
    assert torch.allclose(model(X), stock.k.c(t) + x * 3, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(X), stock.k.c(x * 2 + x) + x * 3, rtol=1e-2)


class Several(nn.Module):
    """Returns two maps; its own inside reads both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 4), conv(4, 4)

    def forward(self, x):
        early = self.a(x)
        return [early, self.b(early)]


class Reader(nn.Module):
    def __init__(self, entries):
        super().__init__()
        self.several, self.head, self.entries = Several(), conv(4, 4), entries

    def forward(self, x):
        found = self.several(x)
        return self.head(sum(found[entry] for entry in self.entries))


@pytest.mark.parametrize(("entries", "taken"), [((1,), [1]), ((0,), [0]), ((0, 1), [0, 1])])
def test_a_returned_map_that_only_the_block_itself_reads_is_skipped(entries, taken):
    planned = plan(Reader(entries).eval(), {"rules": [{"path": "several", "after": "output"}]}, example_inputs=X)
    assert [one.path for one in planned.insertions] == [f"several:{entry}" for entry in taken]
    skipped = {skip.path: skip.reason for skip in planned.skips}
    assert all("never used" in skipped[f"several:{entry}"] for entry in {0, 1} - set(taken))


class Pyramid(nn.Module):
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
    plain = Pyramid().double().eval()
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


@pytest.mark.parametrize("kinds", [(None, Scale), (Scale, None), (Scale, nn.Identity)])
def test_other_attention_at_the_same_sites_is_refused(kinds):
    first, second = kinds
    model = inject(network(), "after block.a", example_inputs=X, attention=first)
    before, name = snapshot(model), "SimAM" if first is None else "Scale"
    with pytest.raises(ModelError, match=rf"already has attention at its sites \({name}\); call eject\(model\)"):
        inject(model, "after block.a", example_inputs=X, attention=second)
    assert snapshot(model) == before


def test_other_attention_at_some_of_the_sites_is_refused():
    both = {"rules": [{"block": "block", "after": name} for name in "ab"]}
    model = inject(network(), "after block.a", example_inputs=X, attention=Scale)
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"already has attention at its sites \(Scale\)"):
        inject(model, both, example_inputs=X)
    assert snapshot(model) == before
    inject(model, "after block.b", example_inputs=X)
    with pytest.warns(UserWarning, match="already have SimAM"):  # the other module is elsewhere
        inject(model, "after block.b", example_inputs=X)


def shared(_channels, _module=nn.Identity()):  # noqa: B008 - one for all
    return _module


class Pair(Scale):
    def forward(self, x):
        return x, super().forward(x)


class Halved(Scale):
    def forward(self, x):
        return super().forward(x)[..., ::2]


class NotYet(Scale):
    def __init__(self, channels):
        nn.Module.__init__(self)
        self.scale = nn.LazyConv2d(channels, 1, bias=False)


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (shared, "must return a new module for each site"),
        (Pair, r"attention at 1\.inner\.a returned a tuple instead of a tensor"),
        (Halved, r"attention at 1\.inner\.a returned a tensor of shape \(.*\) for a map of shape \("),
        (NotYet, "a NotYet whose parameters have no shape yet"),
    ],
)
def test_attention_that_cannot_be_used_leaves_the_model_as_it_was(factory, told):
    model = network()
    before = snapshot(model)
    with pytest.raises(InjectError, match=told):
        inject(model, "after block.a", example_inputs=X, attention=factory)
    assert snapshot(model) == before


def test_strength_for_other_attention_is_refused():
    with pytest.raises(ModelError, match=r"strength=0\.5 applies to SimAM only"):
        inject(network(), "after block.a", example_inputs=X, strength=0.5, attention=Scale)
