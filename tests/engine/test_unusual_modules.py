"""Unusual names, forwards and results of modules, and one feature map that rules find under several names."""

import contextlib
import copy

import pytest
import torch
from torch import fx, nn

from simam_inject import InjectError, inject, injected, plan
from simam_inject.errors import NoMatchError
from simam_inject.persist import load, save
from tests.engine.blocks import run
from tests.engine.networks import resnet18
from tests.engine.targets import assert_like_hooks, conv, image, rule
from tests.oracle import E_LAMBDA, assert_right, attend, same_bits


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = conv(), middle, conv()

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def made(middle, kind=Net):
    torch.manual_seed(1)
    return kind(middle).double().eval()


# Names of the SimAM module


class Summed(Net):
    """With attributes that have the names of the SimAM modules."""

    simam_add = "an attribute of the class"

    def forward(self, x):
        return self.last(self.middle(self.first(x)) + 1.0)


def with_child(name):
    layer = conv()
    layer.add_module(name, nn.Identity())
    return layer


@pytest.mark.parametrize(
    ("child", "names", "keys"),
    [
        ("simam", {"after": "output"}, "middle.simam_2"),
        ("simam_input", {"before": "input"}, "middle.simam_input_2"),
        ("simam_2", {"after": "output"}, "middle.simam"),
    ],
)
def test_a_name_that_the_user_has_taken_is_not_used(child, names, keys):
    stock = made(with_child(child))
    model = inject(copy.deepcopy(stock), rule(path="middle", **names), example_inputs=image())
    assert [one.module for one in injected(model)] == [keys]
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert_like_hooks(model, stock, ["middle" if "after" in names else ">middle"])


def test_an_attribute_of_the_class_is_not_hidden():
    stock = made(nn.Identity(), Summed)
    model = inject(copy.deepcopy(stock), rule(path="add", after="output"), example_inputs=image())
    assert ([one.module for one in injected(model)], model.simam_add) == (["simam_add_2"], Summed.simam_add)
    x = image()
    assert_right(run(model, x), stock.last(attend(stock.first(x) + 1.0)), run(stock, x))


def test_a_file_does_not_hide_an_attribute(tmp_path):
    file, path = tmp_path / "x.safetensors", rule(path="middle", after="output")
    save(inject(made(conv()), path, example_inputs=image()), file)
    model = made(conv())
    model.middle.simam = "mine"
    with pytest.raises(InjectError, match="middle has an attribute 'simam' already"):
        load(file, model)
    assert (model.middle.simam, injected(model)) == ("mine", ())


def test_a_file_is_not_loaded_into_a_model_with_a_forward_of_its_own(tmp_path):
    file = tmp_path / "x.safetensors"
    save(inject(made(nn.Identity(), Summed), rule(path="add", after="output"), example_inputs=image()), file)
    model = made(nn.Identity(), Summed)
    model.forward = own = lambda x: Summed.forward(model, x)
    with pytest.raises(InjectError, match="forward of the model was set on the instance, and cannot be rewritten"):
        load(file, model)
    assert (model.forward, injected(model)) == (own, ())


# Forwards


class BuiltinRelu(nn.Module):
    """`inspect` knows no parameters of this forward."""

    forward = staticmethod(torch.relu)


@pytest.mark.parametrize(("place", "expected"), [("after", "middle"), ("before", ">middle")])
def test_a_forward_without_signature(place, expected):
    stock = made(BuiltinRelu())
    words = {"after": "output"} if place == "after" else {"before": "input"}
    model = inject(copy.deepcopy(stock), rule(path="middle", **words), example_inputs=image())
    assert_like_hooks(model, stock, [expected])


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return torch.relu(self.conv(x))


def test_the_output_of_a_graph_module_is_attended_where_it_is_read():
    stock = made(fx.symbolic_trace(Reads()))
    model = inject(copy.deepcopy(stock), rule(path="middle", after="output"), example_inputs=image())
    assert injected(model)[0].edit.kind == "rewritten", "a hook on a GraphModule is lost in its copies"
    assert_like_hooks(copy.deepcopy(model), stock, ["middle"])


class AddsToAnEntry(Net):
    def forward(self, x):
        found = [self.first(x)]
        found[0] += x
        return self.last(found[0]) + self.middle(found[0])


class AddsToAnAttribute(Net):
    def forward(self, x):
        self.found = self.first(x)
        self.found += x
        return self.last(self.found) + self.middle(self.found)


@pytest.mark.parametrize("kind", [AddsToAnEntry, AddsToAnAttribute])
def test_an_assignment_to_an_entry_or_attribute_cannot_be_wrapped(kind):
    with pytest.raises(InjectError, match="an augmented assignment to something that is not a variable"):
        plan(made(conv(), kind), rule(path="add", after="output"), example_inputs=image())


# What the model itself is given


class First(nn.Sequential):
    def __init__(self, middle):
        super().__init__(conv(), middle)


@pytest.mark.parametrize(("kind", "path"), [(Net, "x"), (First, "input")])
def test_the_input_of_the_model_where_one_module_reads_it(kind, path, tmp_path):
    stock, x = made(conv(), kind), image()
    model = inject(copy.deepcopy(stock), rule(path=path, after="output"), example_inputs=x)
    save(model, tmp_path / "x.safetensors")
    loaded = load(tmp_path / "x.safetensors", copy.deepcopy(stock))
    for ours in (model, copy.deepcopy(model), loaded):
        assert_right(run(ours, x), run(stock, attend(x)), run(stock, x))


# One value with two names


class Switched(nn.Module):
    """What it returns is `add` in the example, and something else if the flag is set."""

    def __init__(self):
        super().__init__()
        self.conv, self.flag = conv(), False

    def forward(self, x):
        y = self.conv(x) + x
        if self.flag:
            return self.conv(y)
        return y


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Switched()

    def forward(self, x):
        return self.inner(x)


NAMES = [
    ("middle", "middle.inner", "middle"),
    ("middle", "middle.inner.add", "middle"),
    ("first", "middle.x", "first"),
    ("first", "middle.inner.x", "first"),
    ("middle.x", "middle.inner.x", "first"),
]
"""Two names of one value, and the module that returns it."""


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(("one", "other", "module"), NAMES)
def test_one_value_is_attended_once_by_the_first_rule(one, other, module, is_reversed):
    one, other = (other, one) if is_reversed else (one, other)
    rules = {"e_lambda": E_LAMBDA, "rules": [{"path": one, "after": "output"}]}
    rules["rules"].append({"path": other, "after": "output", "optional": True})
    stock = made(Around())
    found = plan(stock, rules, example_inputs=image())
    assert [each.path for each in found.insertions] == [one]
    assert all("taken by rules[0]" in skip.reason for skip in found.skips if skip.path == other), found.skips
    assert_like_hooks(inject(copy.deepcopy(stock), rules, example_inputs=image()), stock, [module])


class Residual(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.conv, self.drop = conv(), drop

    def forward(self, x):
        return self.drop(self.conv(x)) + x


DROPS = {"identity": nn.Identity(), "dropout": nn.Dropout(0.1), "sequential": nn.Sequential()}


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("drop", DROPS)
def test_what_a_dropout_alone_reads_is_one_value_with_its_result(drop, is_reversed):
    stock = made(Residual(DROPS[drop]))
    rules = [{"path": "middle.conv", "after": "output"}, {"block": "residual", "before": "residual"}]
    rules[1 - is_reversed]["optional"] = True
    recipe = {"e_lambda": E_LAMBDA, "rules": rules[::-1] if is_reversed else rules}
    found = plan(stock, recipe, example_inputs=image())
    assert len(found.insertions) == 1
    assert "taken by rules[0]" in " ".join(skip.reason for skip in found.skips)
    assert_like_hooks(inject(copy.deepcopy(stock), recipe, example_inputs=image()), stock, ["middle.conv"])


FIRST_RELUS = [f"layer{stage}.{block}.relu" for stage in (1, 2, 3, 4) for block in (0, 1)]
RESNET = [
    (
        [{"block": "basicblock", "after": "relu[*]"}, {"path": "layer4.1.conv1", "before": "input", "optional": True}],
        [(path, None) for path in FIRST_RELUS],
    ),
    (
        [{"path": "layer4.0", "after": "output"}, {"block": "basicblock", "before": "conv1", "pick": "last"}],
        [("layer4.0.x", "layer4.0.conv1"), ("layer4.0", None)],
    ),
    ([{"block": "sequential", "before": "input", "pick": {"last": 2}}], [("layer2", "layer3"), ("layer3", "layer4")]),
]


@pytest.mark.parametrize(("rules", "places"), RESNET)
def test_names_of_one_map_across_blocks_are_counted_once(rules, places):
    found = plan(resnet18(), {"rules": rules}, example_inputs=torch.rand(1, 3, 64, 64))
    assert [(one.path, one.reader) for one in found.insertions] == places


class BothRead(Net):
    def __init__(self, middle):
        super().__init__(middle)
        self.other = Reads()

    def forward(self, x):
        y = self.first(x)
        return self.last(self.middle(y) + self.other(y))


def test_a_second_injection_says_that_a_part_has_simam():
    model = inject(made(Reads(), BothRead), rule(path="middle", before="input"), example_inputs=image())
    with pytest.raises(NoMatchError, match="middle reads it and has SimAM, other readers have none; call eject"):
        inject(model, rule(path="first", after="output"), example_inputs=image())


READERS = [
    ({"path": "middle", "before": "input"}, {"path": "middle.conv", "before": "input"}, {"middle.conv"}),
    ({"path": "middle", "before": "input"}, {"path": "other", "before": "input"}, {"middle.conv", "other.conv"}),
    ({"path": "middle.x", "after": "output"}, {"path": "other", "before": "input"}, None),
    ({"path": "middle.x", "after": "output"}, {"path": "middle.conv", "before": "input"}, None),
]
"""Two rules, and the convolutions that get the attended map; None where this depends on which rule is first."""


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("is_twice", [False, True], ids=["one recipe", "two injections"])
@pytest.mark.parametrize(("one", "other", "places"), READERS)
def test_no_reader_gets_a_map_that_was_attended_twice(one, other, places, is_twice, is_reversed):
    rules = [other, one] if is_reversed else [one, other]
    stock, x = made(Reads(), BothRead), image()
    model = copy.deepcopy(stock)
    if is_twice:
        inject(model, {"e_lambda": E_LAMBDA, "rules": rules[:1]}, example_inputs=x)
    with contextlib.suppress(NoMatchError):  # already has SimAM
        rules = [rules[0], {**rules[1], "optional": True}] if not is_twice else rules[1:]
        inject(model, {"e_lambda": E_LAMBDA, "rules": rules}, example_inputs=x)
    given = {}
    for name in ("middle.conv", "other.conv"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: given.update({name: args[0]}))
    run(model, x)
    plain = run(stock.first, x)
    attended = attend(plain)
    assert len(given) == 2
    assert any(not same_bits(found, plain) for found in given.values())
    for name, found in given.items():
        is_attended = (found - attended).abs().max() < 1e-9
        assert is_attended or same_bits(found, plain), f"{name} gets a map that was attended twice"
        if places is not None:
            assert is_attended == (name in places), name


# Results


class Results(tuple):  # noqa: SLOT001 - its instances have attributes
    """A tuple with an attribute that refers to one of its entries."""


class ReturnsResults(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        found = Results((self.conv(x), x))
        found.best = found[0]
        return found


class ReadsResults(Net):
    def forward(self, x):
        found = self.middle(self.first(x))
        assert isinstance(found, Results)
        return self.last(found[0]) + found.best


def test_an_attribute_of_a_tuple_that_is_one_of_its_entries():
    stock = made(ReturnsResults(), ReadsResults)
    model = inject(copy.deepcopy(stock), rule(path="middle:0", after="output"), example_inputs=image())
    x = image()
    attended = attend(stock.middle.conv(stock.first(x)))
    assert_right(run(model, x), stock.last(attended) + attended, run(stock, x))


# What was removed


@pytest.mark.parametrize("replacement", [None, "removed"])
def test_a_simam_that_was_removed_is_an_error(replacement, tmp_path):
    model = inject(made(conv()), rule(path="middle", after="output"), example_inputs=image())
    if replacement is None:
        model.middle.simam = None
    else:
        del model.middle.simam
    with pytest.raises(InjectError, match=r"SimAM at middle (is missing|was lost)"):
        run(model, image())
    with pytest.raises(InjectError, match="SimAM at middle was removed"):
        save(model, tmp_path / "x.safetensors")
