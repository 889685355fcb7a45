"""The seven invariants of the engine, on nine small networks, bit for bit against forward hooks with the operator."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from simam_inject import InjectError, SimAM, bypass, eject, inject, injected, plan, simam, verify
from tests.engine.blocks import conv
from tests.goldens.freeze import spread
from tests.nets import classifiers, restoring, scales, unets
from tests.nets.parts import NETS
from tests.oracle import E_LAMBDA, distance, hooked, same_bits
from tests.snapshot import snapshot

assert all((classifiers, restoring, scales, unets))
NINE = {
    "cifar-resnet": ("paper", "{layer1,layer2,layer3}.{0,1}.conv2"),
    "preact-cifar": ("block-output", "{layer1,layer2,layer3}.{0,1}"),
    "res2net": ("residual", "body.{0,1,2}.n3"),
    "mobile-se": ("paper", "units.{0,1,2,3}.depth.filt"),
    "official-convnext": ("paper", "stages.{0,1}.{0,1}.dw"),
    "csp": ("block-output", "dark2.1 dark3.1"),
    "unet-classes": ("unet", "u1 u2"),
    "hourglass": ("block-output", "glass.hg.1.{0,1,2} glass.hg.0.{0,1,2,3} after"),
    "siamese": ("residual", "encoder.{a,b}.bn2"),
}


class Case:
    def __init__(self, name):
        self.net, (self.recipe, paths) = NETS[name], NINE[name]
        self.places = spread(paths)
        self.stock = self.net.build()
        self.model = self.put()

    def put(self, model=None, **options):
        model = copy.deepcopy(self.stock) if model is None else model
        return inject(model, self.recipe, example_inputs=self.net.inputs(), e_lambda=E_LAMBDA, **options)

    def plan(self, model):
        return plan(model, self.recipe, example_inputs=self.net.inputs())


@pytest.fixture(scope="module", params=NINE)
def case(request):
    return Case(request.param)


def run(model, inputs, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(*inputs)


def test_the_output_is_bit_equal_to_hooks_with_the_operator(case):
    for inputs in (case.net.inputs(), case.net.inputs(2, grow=32)):
        with hooked(case.stock, case.places, operator=simam):
            expected = run(case.stock, inputs)
        with hooked(case.stock, case.places):
            formula = run(case.stock, inputs)
        found = run(case.model, inputs)
        assert same_bits(found, expected)
        assert distance(found, formula) < 1e-8
        assert distance(formula, run(case.stock, inputs)) > 1e-4


def test_gradients_in_train_mode_are_those_of_the_hooked_model(case):
    stock, model = copy.deepcopy(case.stock).train(), copy.deepcopy(case.model).train()
    gradients = []
    for net, places in ((stock, case.places), (model, [])):
        with hooked(net, places):
            torch.manual_seed(1)
            output = net(*case.net.inputs())
        output.square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert len(gradients[0]) == len(gradients[1])
    largest = max(each.norm() for each in gradients[0] if each is not None)
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours - theirs).norm() <= 1e-8 * (theirs.norm() + largest)
    assert all(map(torch.allclose, stock.buffers(), model.buffers()))


# 1


def test_keys_are_the_same_and_load_strictly_both_ways(case):
    fresh, other = case.net.build(), case.put(case.net.build(), verify=False)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(1.1)
    assert list(case.model.state_dict()) == list(case.stock.state_dict())
    assert [name for name, _ in case.model.named_parameters()] == [name for name, _ in case.stock.named_parameters()]
    other.load_state_dict(fresh.state_dict(), strict=True)
    with hooked(fresh, case.places, operator=simam):
        assert same_bits(run(other, case.net.inputs()), run(fresh, case.net.inputs()))
    fresh.load_state_dict(case.model.state_dict(), strict=True)
    assert same_bits(run(fresh, case.net.inputs()), run(case.stock, case.net.inputs()))


def test_the_simam_is_a_child_of_the_holder(case):
    for insertion in injected(case.model):
        module = case.model.get_submodule(insertion.module)
        assert type(module) is SimAM
        assert (module.e_lambda, module.channel_dim) == (E_LAMBDA, insertion.channel_dim)
        assert (module.strength, module.gain, module.bypassed) == (1.0, 1.0, False)
        assert not module.state_dict()
    assert len(injected(case.model)) == len(case.places)


# 2


def test_eject_brings_everything_back(case):
    model = copy.deepcopy(case.stock)
    before, keys = snapshot(model), list(model.state_dict())
    assert eject(case.put(model, verify=False)) is model
    assert snapshot(model) == before
    assert list(model.state_dict()) == keys
    assert injected(model) == ()
    assert same_bits(run(model, case.net.inputs()), run(case.stock, case.net.inputs()))
    assert eject(model) is model


@pytest.mark.parametrize("training", [False, True])
def test_bypass_is_the_stock_model(case, training):
    stock, model = copy.deepcopy(case.stock).train(training), copy.deepcopy(case.model).train(training)
    with bypass(model):
        assert same_bits(run(model, case.net.inputs()), run(stock, case.net.inputs()))
    assert all(map(torch.equal, stock.buffers(), model.buffers()))
    assert not same_bits(run(model, case.net.inputs()), run(stock, case.net.inputs()))


class Levels(nn.Module):
    """As many maps as the size allows."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = conv(3, 3), kind

    def forward(self, x):
        maps = [self.conv(x) * 2]
        while maps[-1].shape[-1] > 4:
            maps.append(maps[-1][..., ::2, ::2])
        return maps if self.kind is list else {f"p{level}": each for level, each in enumerate(maps)}


class Reader(nn.Module):
    def forward(self, maps, more=None):
        return maps if more is None else [*maps, more]


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.levels, self.reader = Levels(list), Reader()

    def forward(self, x):
        first, *more = self.levels(x)
        return self.reader([first], *more)


SMALL, UNBATCHED = torch.rand(2, 3, 4, 4), torch.rand(3, 8, 8)


@pytest.mark.parametrize("attention", [None, lambda _: nn.Softmax(1)])
@pytest.mark.parametrize(
    ("build", "rule", "given"),
    [
        (lambda: Levels(list), {"block": "Levels", "after": "output"}, SMALL),
        (lambda: Levels(dict), {"block": "Levels", "after": "output"}, SMALL),
        (Reads, {"block": "Reader", "before": "input"}, SMALL),
        (lambda: Levels(list), {"block": "Levels", "after": "mul"}, UNBATCHED),
        (lambda: Levels(list), {"block": "Levels", "after": "conv"}, UNBATCHED),
    ],
)
def test_bypassed_a_model_takes_what_the_stock_model_takes(build, rule, given, attention):
    stock = build()
    model = inject(copy.deepcopy(stock), {"rules": [rule]}, example_inputs=torch.rand(2, 3, 8, 8), attention=attention)
    with pytest.raises(InjectError):
        model(given)
    with bypass(model):
        assert same_bits(model(given), stock(given))
    if attention is None:
        for site in injected(model):
            model.get_submodule(site.module).bypassed = True
        assert same_bits(model(given), stock(given))


# 3


def disturb(model):
    modules = list(model.modules())
    for module in modules[::2]:
        module.training = True
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[1].requires_grad_(False)
    modules[-1].register_forward_hook(lambda *_: None)
    modules[-1].register_forward_pre_hook(lambda *_: None)
    return model


def test_plan_leaves_everything_as_found(case):
    model = disturb(copy.deepcopy(case.stock))
    before = snapshot(model)
    planned = case.plan(model)
    assert snapshot(model) == before
    assert len(planned.insertions) == len(case.places)


def test_verify_leaves_everything_as_found(case):
    model = disturb(copy.deepcopy(case.model))
    before = snapshot(model)
    found = verify(model, example_inputs=case.net.inputs())
    assert snapshot(model) == before
    assert found.ok, str(found)


def test_inject_leaves_modes_tensors_and_random_numbers(case):
    model = disturb(copy.deepcopy(case.stock))
    before = snapshot(model)
    modes = {path: module.training for path, module in model.named_modules()}
    case.put(model)
    assert snapshot(model)[1:] == before[1:]
    assert {path: model.get_submodule(path).training for path in modes} == modes


# 4


def test_copies_and_pickles_are_data(case, monkeypatch):
    """Nothing runs on loading, and what is loaded is attended."""
    data, expected = pickle.dumps(case.model), run(case.model, case.net.inputs())
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("a module is called on loading"))
        twins = [pickle.loads(data), copy.deepcopy(case.model)]
    for twin in twins:
        assert same_bits(run(twin, case.net.inputs()), expected)
        assert injected(twin) == injected(case.model)
        eject(twin)
        assert same_bits(run(twin, case.net.inputs()), run(case.stock, case.net.inputs()))
    assert same_bits(run(case.model, case.net.inputs()), expected)


def test_a_recipe_is_text(case):
    recipe = {"rules": [{"path": "__import__('os')._exit(1)", "after": "output"}]}
    with pytest.raises(InjectError):
        inject(copy.deepcopy(case.stock), recipe, example_inputs=case.net.inputs())


# 5


def test_zero_effect_is_an_error_and_each_skip_has_a_reason(case):
    with pytest.raises(InjectError):
        inject(copy.deepcopy(case.stock), {"rules": [{"block": "NoSuchBlock", "after": "output"}]},
               example_inputs=case.net.inputs())  # fmt: skip
    planned = plan(case.stock, {"rules": [{"path": "*", "after": {"op": "conv"}}]}, example_inputs=case.net.inputs())
    assert all(skip.reason.strip() for skip in planned.skips)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        case.put(copy.deepcopy(case.model), verify=False)
    assert any("nothing" in str(each.message) for each in warned)


def test_a_failure_leaves_the_model_as_it_was(case, monkeypatch):
    model = copy.deepcopy(case.stock)
    before = snapshot(model)
    real = SimAM.forward
    monkeypatch.setattr(SimAM, "forward", lambda self, x: real(self, x) * 1.01)
    with pytest.raises(InjectError, match="formula"):
        case.put(model)
    monkeypatch.undo()
    assert snapshot(model) == before
    assert same_bits(run(model, case.net.inputs()), run(case.stock, case.net.inputs()))


# 6


def test_modes_batches_and_sizes_change_as_on_the_stock_model(case):
    stock, model = copy.deepcopy(case.stock), copy.deepcopy(case.model)
    for training, seed, grow in ((True, 3, 0), (False, 4, 32), (True, 5, 32), (False, 6, 0)):
        for net in (stock, model):
            net.train(training)
        inputs = case.net.inputs(seed, grow)
        inputs = tuple(torch.cat([each, each[:1]]) for each in inputs)
        with hooked(stock, case.places, operator=simam):
            expected = run(stock, inputs)
        assert same_bits(run(model, inputs), expected)
    assert all(map(torch.equal, stock.buffers(), model.buffers()))


# 7


def test_a_replaced_holder_raises_at_the_next_forward(case):
    place = case.places[0]
    model = copy.deepcopy(case.model)
    holder = next(i.module for i in injected(model) if i.path == place).rpartition(".")[0]
    parent, _, name = holder.rpartition(".")
    setattr(model.get_submodule(parent), name, copy.deepcopy(case.stock).get_submodule(holder))
    with pytest.raises(InjectError, match=place.replace(".", r"\.")):
        run(model, case.net.inputs())


def test_a_cleared_hook_is_mended_or_raises(case):
    model, expected = copy.deepcopy(case.model), run(case.model, case.net.inputs())
    holder = model.get_submodule(injected(model)[0].module.rpartition(".")[0])
    holder._forward_hooks.clear()
    holder._forward_pre_hooks.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = run(model, case.net.inputs())
        except InjectError:
            return
    assert warned
    assert same_bits(found, expected)
