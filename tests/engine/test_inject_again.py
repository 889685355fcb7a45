"""Injecting again, more, nested, into a part and into the whole, and back."""

import copy
import pickle

import pytest
import torch
from torch import nn

from simam_inject import eject, inject, injected, plan, simam, verify
from simam_inject.errors import ModelError, NoMatchError
from tests.engine.blocks import Block, Net, Net2, conv, network
from tests.messages import says
from tests.oracle import E_LAMBDA, hooked, same_bits
from tests.snapshot import snapshot

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


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
    with pytest.warns(UserWarning, match="nothing to inject: all 2 sites"):
        assert inject(model, "after block.a", example_inputs=X) is model
    assert snapshot(model) == before
    again = plan(model, "after block.a", example_inputs=X)
    assert again.insertions == ()
    assert [insertion.path for insertion in again.present] == ["1.inner.a", "2.inner.a"]


def test_more_sites_with_another_strength_say_that_the_others_keep_theirs():
    model = inject(network(), "after block.a", example_inputs=X)
    both = {"rules": [{"block": "block", "after": name} for name in "ab"]}
    with pytest.warns(UserWarning, match=says("2 of the sites", "their strength is unchanged")):
        inject(model, both, example_inputs=X, strength=0.0)
    assert {site.path[-1]: site.strength for site in injected(model)} == {"a": 1.0, "b": 0.0}


@pytest.mark.filterwarnings("error")
def test_the_warning_of_another_strength_is_raised_before_the_change_and_is_no_false_alarm():
    model = inject(network(), {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X, strength=0.5)
    inject(model, "after block.a", example_inputs=X)
    both = {"rules": [{"block": "block", "after": name} for name in "ab"]}
    before = injected(model)
    with pytest.raises(UserWarning, match="2 of the sites"):
        inject(model, both, example_inputs=X, strength=0.0)
    assert injected(model) == before
    inject(model, both, example_inputs=X)
    assert len(injected(model)) == len(before) + 2


class TwoRelus(Block):
    """The second call of its ReLU is what it returns."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.b(self.relu(self.a(x))) + x)


@pytest.mark.parametrize("first", [{"pattern": "relu"}, {"block": "TwoRelus", "after": "relu[*]"}])
@pytest.mark.parametrize(
    ("then", "inserted"),
    [
        ("block-output", []),
        ({"rules": [{"path": "[12]", "after": "output"}]}, []),
        ("before tworelus.a", ["1.x"]),  # the input of the second block has SimAM
        ("before tworelus.input", ["0"]),
    ],
)
def test_what_the_calls_of_one_module_return_is_attended_once(first, then, inserted):
    model = inject(nn.Sequential(conv(3), TwoRelus(), TwoRelus()).eval(), {"rules": [first]}, example_inputs=X)
    assert paths(model) == ["1.relu", "2.relu"]
    assert [insertion.path for insertion in plan(model, then, example_inputs=X).insertions] == inserted


def test_another_lambda_is_refused_and_not_ignored():
    model = inject(network(), "after block.a", example_inputs=X)
    recipe = {"e_lambda": 0.5, "rules": [{"block": "block", "after": "a"}]}
    before = snapshot(model)
    message = says("rules[0]", "matched 2 sites", "1.inner.a: ", "e_lambda 0.0001 instead of 0.5", "eject(model)")
    for action in (inject, plan):
        with pytest.raises(NoMatchError, match=message):
            action(model, recipe, example_inputs=X)
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


def test_eject_leaves_the_simam_of_a_child_where_that_of_its_holder_was_removed():
    class Outer(Net):
        def forward(self, x):
            return self.block.simam(super().forward(x))

    model = nn.Sequential(Outer(Block())).eval()
    model[0].block.simam = conv()
    plain = copy.deepcopy(model)
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X)
    del model[0].simam
    eject(model)
    assert same_bits(run(model), run(plain))


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


@pytest.mark.parametrize("is_first", [True, False])
def test_a_part_that_was_injected_by_itself_with_another_lambda(is_first):
    model, part = eject(with_head()), {"e_lambda": E_LAMBDA, "rules": [{"path": "a", "after": "output"}]}
    plain = copy.deepcopy(model)
    for is_part in (is_first, not is_first):
        if is_part:
            inject(model.aux, part, example_inputs=torch.rand(1, 4, 8, 8))
        else:
            inject(model, "after trainswithhead.stem", example_inputs=X)
    assert verify(model, example_inputs=X).ok
    with hooked(plain, ["stem"], 1e-4, simam), hooked(plain, ["aux.a"], E_LAMBDA, simam), torch.no_grad():
        assert same_bits(model.train()(X), plain.train()(X))
    model.aux.a.simam.e_lambda = 0.5
    assert "aux.a has e_lambda 0.5" in str(verify(model, example_inputs=X))


def test_ejecting_the_whole_takes_the_part_along():
    model = eject(with_head())
    assert injected(model) == ()
    assert not any("simam" in str(key) for module in model.modules() for key in module._forward_pre_hooks)
    model.train()(X)


class Sums(Net2):
    def forward(self, x):
        y = self.inner.a(x) * 2.0
        return self.norm(self.inner.b(y)) + y


@pytest.mark.parametrize("rule", ["after sums.inner.b", "after sums.mul", "before sums.norm"])
def test_ejecting_a_part_leaves_the_rest(rule):
    torch.manual_seed(1)
    plain, x = nn.Sequential(Sums(), Sums()).eval(), torch.rand(2, 4, 8, 8)
    model = inject(copy.deepcopy(plain), rule, example_inputs=x)
    second = copy.deepcopy(model)[1]
    eject(model[0])
    model[0].norm = plain[0].norm = nn.Identity()
    with torch.no_grad():
        wanted = second(plain[0](x))
        assert not same_bits(wanted, plain(x))
        for one in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model):
            assert same_bits(one(x), wanted)
            assert verify(one).ok
    assert len(injected(inject(model, "after sums.mul", example_inputs=x))) == 2 + (rule != "after sums.mul")
    for part in model:
        eject(part)
    with pytest.raises(ModelError, match="no SimAM"):
        verify(model)
    assert same_bits(model(x), plain(x))
    assert not model._forward_pre_hooks


def test_a_copy_of_a_block_that_was_added_later():
    model = inject(network(), "after block.a", example_inputs=X)
    model.append(copy.deepcopy(model[2]))
    plain = eject(copy.deepcopy(model))
    assert same_bits(run(model), oracle(plain, ["1.inner.a", "2.inner.a", "3.inner.a"]))
    assert "1 of 3 sites came with modules that were added later" in str(verify(model))
    with pytest.warns(UserWarning, match="all 3 sites"):
        inject(model, "after block.a", example_inputs=X)
    assert verify(model).ok
    del model[3].inner.a.simam
    with pytest.raises(ModelError, match=says("3.inner.a", "was lost")):
        run(model)


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
