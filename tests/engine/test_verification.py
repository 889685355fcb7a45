"""Verification passes a right model and catches each planted fault, whatever kind of edit holds the SimAM."""

import pickle
from collections import OrderedDict, namedtuple
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.nn.utils.prune import l1_unstructured
from torch.utils.checkpoint import checkpoint

from simam_inject import SimAM, api, bypass, eject, inject, injected, plan, simam, verify
from simam_inject.editing import hooks, rewrite
from simam_inject.errors import ModelError, VerificationError
from simam_inject.planning import planner
from simam_inject.planning.edits import Resolved
from simam_inject.planning.insertions import Input, Output, Rewritten
from tests.snapshot import snapshot

X = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(2))


def conv(before=4):
    return nn.Conv2d(before, 4, 3, padding=1)


class Block(nn.Module):
    """`a` is what a module returns, `b` reads the `mul`, and `add` is an operation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.skip = conv(), conv(), conv(), conv()

    def forward(self, x):
        y = self.b(self.a(x) * 2.0) + self.skip(x)
        return self.c(y) * y.sigmoid() - x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block = conv(3), Block()

    def forward(self, x):
        return self.block(self.stem(x))


EDITS = {"a": Output("block.a"), "b": Input("block.b", 0), "add": Rewritten("block", "add")}
INPUT = "equal to the formula in hooks on the original, at another input size"
BYPASSED, BYPASSED_TRAIN = (f"bypassed: equal to the original in {mode} mode" for mode in ("eval", "train"))
TRAIN = "equal to the formula in train mode, gradients included"
LIVE = "every SimAM ran at the example's size, equal to the formula"
PLANNED = "every SimAM is the one planned"


hooks_attend, SIMAM_FORWARD = hooks.attend, SimAM.forward


def build(site="a", **options):
    torch.manual_seed(1)
    where = "before" if site == "b" else "after"
    return inject(Net().eval(), f"{where} block.{site}", example_inputs=X, **options)


def failures(model, **options):
    return {check.name: check.detail for check in verify(model, **options).checks if check.ok is False}


@pytest.fixture(params=EDITS)
def model(request):
    """Injected, right, and verified."""
    made = build(request.param)
    assert injected(made)[0].edit == EDITS[request.param]
    return made


def test_a_right_model(model):
    found = verify(model)
    assert [(check.name, check.ok) for check in found.checks] == [
        (PLANNED, True),
        ("state_dict keys and parameters unchanged", True),
        (BYPASSED, True),
        (LIVE, True),
        (INPUT, True),
        (BYPASSED_TRAIN, True),
        (TRAIN, True),
    ]


def test_sites_of_every_kind_at_once():
    """The oracle counts the forward's own operations, and not those of its formula."""
    torch.manual_seed(1)
    rules = [{"block": "block", "after": site} for site in ("a", "b", "skip", "sigmoid", "add", "output")]
    rules.append({"block": "block", "before": "b"})
    model = inject(Net().eval(), {"rules": rules}, example_inputs=X)
    assert {type(insertion.edit) for insertion in injected(model)} == {Output, Input, Rewritten}
    assert verify(model).ok


# The planted faults


def overwrites(real, module, site, x):
    y = real(module, site, x)
    x.detach().mul_(2)
    return y


EDITING = {
    "missing in train mode": (lambda real, m, s, x: x if m.training else real(m, s, x), {TRAIN}),
    "unused in train mode": (lambda real, m, s, x: (real(m, s, x), x)[m.training], {TRAIN}),
    "detached before": (lambda real, m, s, x: real(m, s, x.detach()), {TRAIN}),
    "detached after": (lambda real, m, s, x: real(m, s, x).detach(), {TRAIN}),
    "overwritten before the backward": (overwrites, {BYPASSED, TRAIN}),
    "unused in eval mode": (lambda real, m, s, x: real(m, s, x) if m.training else x + 0 * real(m, s, x), {INPUT}),
    "twice": (lambda real, m, s, x: real(m, s, real(m, s, x)), {LIVE, INPUT, TRAIN}),
}


@pytest.mark.parametrize("fault", EDITING)
def test_a_fault_of_the_edit(fault, model, monkeypatch):
    attend, names = EDITING[fault]
    for module in (hooks, rewrite):
        monkeypatch.setattr(module, "attend", partial(attend, hooks_attend))
    assert set(failures(model)) == names


OPERATOR = {
    "another formula": (lambda real, m, x: x * x.sigmoid(), {LIVE, INPUT, TRAIN}),
    "another lambda, by a hundredth": (lambda real, m, x: simam(x, m.e_lambda * 1.01), {LIVE, INPUT, TRAIN}),
    "right at the size of the example alone": (
        lambda real, m, x: real(m, x) if x.shape[-1] == 16 else x,
        {INPUT, TRAIN},
    ),
    "wrong at the size of the example alone": (lambda real, m, x: x if x.shape[-1] == 16 else real(m, x), {LIVE}),
    "raises at another size": (lambda real, m, x: real(m, x) if x.shape[-1] == 16 else x.missing, {INPUT, TRAIN}),
    "not finite": (lambda real, m, x: real(m, x) * float("nan"), {LIVE, INPUT, TRAIN}),
    "another gradient": (lambda real, m, x: 2 * real(m, x) - real(m, x).detach(), {TRAIN}),
    "another shape": (lambda real, m, x: real(m, x)[:, :, :1], {LIVE, INPUT, TRAIN}),
}


@pytest.mark.parametrize("fault", OPERATOR)
def test_a_fault_of_the_operator(fault, model, monkeypatch):
    forward, names = OPERATOR[fault]
    monkeypatch.setattr(SimAM, "forward", lambda m, x: x if m.bypassed else forward(SIMAM_FORWARD, m, x))
    assert set(failures(model)) == names


@pytest.mark.parametrize(("training", "name"), [(False, BYPASSED), (True, BYPASSED_TRAIN)])
def test_a_simam_that_is_not_bypassed_in_one_mode(training, name, model, monkeypatch):
    def forward(m, x):
        return x + 0 if m.bypassed and m.training == training else SIMAM_FORWARD(m, x)

    monkeypatch.setattr(SimAM, "forward", forward)
    assert set(failures(model)) == {name}


def put_elsewhere(monkeypatch, edit, **also):
    """Plan another edit than the one for the value, and keep its name."""
    monkeypatch.setattr(planner, "resolve", lambda *_: Resolved(edit, **also))


@pytest.mark.parametrize(
    ("site", "edit"),
    [
        ("a", Output("block.b")),
        ("a", Output("block.skip")),  # on the skip instead of the branch
        ("mul[1]", Input("block.c", 0)),
        ("mul[1]", Input("block.skip", 0)),
    ],
    ids=str,
)
def test_a_site_on_the_wrong_value(monkeypatch, site, edit):
    put_elsewhere(monkeypatch, edit)
    with pytest.raises(VerificationError, match=r"the model was restored.*formula"):
        build(site)


def test_another_expression_of_the_forward(monkeypatch):
    real = planner.resolve

    def wrong(flow, site, reader):
        other = flow.anatomy.site_by_path["block.sigmoid"]
        return replace(real(flow, site, reader), expression=real(flow, other, reader).expression)

    monkeypatch.setattr(planner, "resolve", wrong)
    with pytest.raises(VerificationError, match=r"the model was restored.*formula"):
        build("add")


def test_the_forward_of_the_class_put_back():
    model = build("add")
    del model.block.__dict__["forward"]
    assert failures(model) == {PLANNED: "0 of 1 sites are in the model"}
    with pytest.raises(ModelError, match=r"SimAM at block\.add was lost"):
        model(X)


@pytest.mark.parametrize("site", ["a", "b"])
def test_a_forward_that_passes_the_attended_module_by(site):
    model = build(site)
    block = model.block
    block.forward = lambda x: block.c(x) * 2
    assert "never ran" in failures(model)[LIVE]


def test_all_hooks_taken_away(model):
    model._forward_pre_hooks.clear()
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module.__dict__.pop("forward", None)
    with pytest.raises(ModelError, match="no SimAM in this model"):
        verify(model)


def test_a_wrong_lambda_in_operator_and_record_alike(monkeypatch):
    real = planner.Insertion

    def wrong(*args, **kwargs):
        return replace(real(*args, **kwargs), e_lambda=0.5)

    monkeypatch.setattr(planner, "Insertion", wrong)
    with pytest.raises(VerificationError, match=r"block\.a has e_lambda 0\.5; its recipe has 0\.0001"):
        build("a")


def test_wrong_axes_in_operator_and_record_alike(monkeypatch):
    real = planner.Insertion
    monkeypatch.setattr(planner, "Insertion", lambda *args, **kwargs: real(*args, **{**kwargs, "channel_dim": -1}))
    with pytest.raises(VerificationError):
        build("a")


# Sabotage of one module, and what verification leaves alone


def test_a_site_inside_a_forward_that_train_mode_runs_otherwise():
    class Otherwise(Block):
        def forward(self, x):
            y = self.a(x)
            if self.training:
                return self.c(y * 2.0)
            y = y + x
            return self.b(y) * y

    with pytest.raises(VerificationError, match="add never ran: in train mode"):
        inject(Otherwise(), "after otherwise.add", example_inputs=torch.rand(2, 4, 8, 8))


def test_a_site_inside_a_forward_that_computes_more_in_train_mode():
    class Noisy(Block):
        def forward(self, x):
            if self.training:
                x = x + torch.randn_like(x) * 0.1
            y = self.a(x)
            y = y + x
            return self.b(y) * y

    model = inject(Noisy(), "after noisy.add", example_inputs=torch.rand(2, 4, 8, 8))
    assert verify(model).ok


@pytest.mark.parametrize(("is_at", "size"), [(lambda size: size == 8, 8), (lambda size: size > 70, 96)])
def test_a_site_inside_a_forward_that_is_computed_at_some_sizes_only(is_at, size):
    class AtSizes(Block):
        def forward(self, x):
            y = self.a(x)
            y = y + x if is_at(x.shape[-1]) else y - x
            return self.b(y) * y

    x = torch.randn(2, 4, size, size)
    model = inject(AtSizes(), "after atsizes.add", example_inputs=x)
    assert verify(model).ok
    plain, y = model.a(x) + x, simam(model.a(x) + x)
    torch.testing.assert_close(model(x), model.b(y) * y)
    assert (model.b(y) * y - model.b(plain) * plain).abs().max() > 0.01


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_site_inside_a_forward_that_is_computed_for_some_batch_sizes_only(batch):
    class AtBatch(Block):
        def forward(self, x):
            y = self.a(x)
            y = y + x if x.shape[0] == batch else y - x
            return self.b(y) * y

    x = torch.randn(batch, 4, 8, 8)
    model = inject(AtBatch(), "after atbatch.add", example_inputs=x)
    assert next(check for check in verify(model).checks if check.name == TRAIN).ok is True


def test_a_site_that_train_mode_never_computes_where_it_does_not_run_at_the_size_of_the_example():
    class Limited(Block):
        def forward(self, x):
            y = self.a(x)
            if self.training and x.shape[-1] > 64:
                raise ValueError("too large")
            y = y * 2.0 if self.training else y + x
            return self.b(y) * y

    with pytest.raises(VerificationError, match="add never ran: in train mode"):
        inject(Limited(), "after limited.add", example_inputs=torch.rand(2, 4, 96, 96))


class Frozen(Net):
    """A part whose forward records no gradients reads what the stem returns."""

    def __init__(self, run):
        super().__init__()
        self.other, self.run = Block(), run

    def forward(self, x):
        y = self.stem(x)
        return self.block(y) + self.run(self.other, y)


def without_gradients(part, x):
    with torch.no_grad():
        return part(x)


FROZEN = {"no_grad": without_gradients, "checkpoint": partial(checkpoint, use_reentrant=True)}


@pytest.mark.parametrize("run", FROZEN)
@pytest.mark.parametrize("recipe", ["before block", "before block.a"])
def test_what_a_part_without_gradients_reads(run, recipe, monkeypatch):
    model = inject(Frozen(FROZEN[run]), recipe, example_inputs=X)
    assert [one.edit.module.partition(".")[0] for one in injected(model)] == ["block", "other"]
    assert verify(model).ok
    eject(model)
    monkeypatch.setattr(SimAM, "forward", lambda attention, x: SIMAM_FORWARD(attention, x.detach()))
    with pytest.raises(VerificationError, match="has no gradient"):
        inject(model, recipe, example_inputs=X)


SABOTAGE = {
    "bypassed": (lambda attention: setattr(attention, "bypassed", True), "is bypassed"),
    "e_lambda": (lambda attention: setattr(attention, "e_lambda", 5.0), "e_lambda 5"),
    "channel_dim": (lambda attention: setattr(attention, "channel_dim", -1), "channel_dim -1"),
}


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_another_setting_than_the_planned_one(sabotage):
    model = build()
    change, words = SABOTAGE[sabotage]
    change(model.get_submodule(injected(model)[0].module))
    assert words in failures(model)[PLANNED]


def test_a_simam_that_was_removed():
    model = build()
    del model.block.a.simam
    assert failures(model)[PLANNED] == "block.a has lost its module simam"


def test_a_weight_that_was_written_to(monkeypatch):
    model = Net().eval()
    real = api._apply

    def apply(network, *rest):
        real(network, *rest)
        network.stem.weight.detach().mul_(1.001)

    monkeypatch.setattr(api, "_apply", apply)
    with pytest.raises(VerificationError, match="replaced or written to"):
        inject(model, "after block.a", example_inputs=X)
    assert injected(model) == ()


def test_a_verification_that_raises_leaves_the_model_as_it_was(monkeypatch):
    model = Net()
    before = snapshot(model)
    monkeypatch.setattr(SimAM, "forward", lambda self, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inject(model, "after block.a", example_inputs=X)
    assert snapshot(model) == before


def test_inside_bypass_verification_says_so():
    model = build()
    with bypass(model):
        assert "bypassed" in failures(model)[PLANNED]
    assert verify(model).ok


def test_a_model_without_simam():
    with pytest.raises(ModelError, match="no SimAM in this model"):
        verify(Net(), example_inputs=X)


@pytest.mark.parametrize("part", [lambda model: model.block, lambda model: nn.Sequential(model.block)])
def test_a_part_of_a_model_that_was_injected(part):
    with pytest.raises(ModelError, match=r"SimAM was injected into a model .*: verify that model"):
        verify(part(build()), example_inputs=X)


def test_it_changes_nothing():
    model = build()
    model.train()
    model.stem.eval()
    model(X).sum().backward()
    before = snapshot(model)
    assert verify(model).ok
    assert snapshot(model) == before


class NeedsTargets(Block):
    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be none in train mode")
        return super().forward(x)


def test_a_check_that_cannot_run_says_why():
    model = inject(NeedsTargets(), "after needstargets.a", example_inputs=torch.rand(2, 4, 8, 8))
    skipped = [check for check in verify(model).checks if check.ok is None]
    assert [check.name for check in skipped] == ["bypassed: equal to the original in train mode", TRAIN]
    assert all("targets should not be none" in check.detail for check in skipped)


# What a model does by itself is not held against SimAM


class Holes(Net):
    """Computes NaN or infinity where the case says so."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def forward(self, x):
        return self.spoil(super().forward(x))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y / torch.zeros_like(y),
        lambda y: y.masked_fill(torch.arange(16) < 3, float("nan")),
        lambda y: y.masked_fill(torch.arange(16) < 3, float("-inf")),
        lambda y: y.masked_fill(torch.arange(16) < 3, float("-inf")).softmax(-1).log(),
        lambda y: torch.cat([y, torch.full_like(y, float("inf"))], 1),
    ],
)
def test_outputs_that_are_not_finite_anyway(spoil):
    torch.manual_seed(1)
    model = inject(Holes(spoil).eval(), "after block.a", example_inputs=X)
    assert verify(model).ok
    model.block.a.simam.forward = lambda x: x * 1.1
    assert not verify(model).ok


Pair = namedtuple("Pair", "one other")


class TakesIds(Net):
    def forward(self, x, ids=None):
        return super().forward(x) if ids is not None else super().forward(x.missing)


@pytest.mark.parametrize(
    "given",
    [
        {"x": X, "ids": object()},
        {"x": X, "ids": torch.Generator()},
        (X, lambda: 1),
        (X, {0.5: X}),
        (X, Pair(X, X)),
        (X, OrderedDict(a=X)),
        (X, "tensor product"),
        (X, torch.ones([1] * 9)),
    ],
    ids=["object", "generator", "function", "key", "named tuple", "ordered dict", "text", "rank 9"],
)
def test_an_example_that_cannot_be_written_down_is_asked_for(given):
    model = inject(TakesIds().eval(), "after block.a", example_inputs=given)
    with pytest.raises(ModelError, match=r"cannot be run on the example input .*example_inputs"):
        verify(model)
    assert verify(model, example_inputs=given).ok


class HasExtraState(Net):
    def get_extra_state(self):
        return self.stem.weight.sum().item()

    def set_extra_state(self, state):
        pass


class WritesArrays(Net):
    def state_dict(self, *args, **options):
        return {name: tensor.numpy() for name, tensor in super().state_dict(*args, **options).items()}


@pytest.mark.parametrize("kind", [HasExtraState, WritesArrays])
def test_a_state_dict_that_reads_values(kind):
    assert verify(inject(kind().eval(), "after block.a", example_inputs=X)).ok


@pytest.mark.parametrize("ids", [torch.tensor(3), torch.tensor(0.5), torch.tensor(True), torch.zeros(0)])
def test_an_example_of_single_numbers_is_remembered(ids):
    model = inject(TakesIds().eval(), "after block.a", example_inputs={"x": X, "ids": ids})
    assert verify(pickle.loads(pickle.dumps(model))).ok


@pytest.mark.parametrize("shape", [(2, 5, 16, 16), (3, 16), (2, 3)])
def test_an_example_that_the_model_does_not_take(shape):
    with pytest.raises(ModelError, match="cannot be run on the example input"):
        verify(build(), example_inputs=torch.zeros(shape))


class Image(torch.Tensor):
    """As fastai's `TensorImage` and MONAI's `MetaTensor`: its copies are views of copies."""


class InPlace(Block):
    def forward(self, x):
        y = self.a(x)
        y += x
        return y * 2.0 if isinstance(y, Image) else y


def test_a_tensor_subclass_that_is_written_in_place(monkeypatch):
    torch.manual_seed(1)
    model = Net()
    model.block = InPlace()
    inject(model.eval(), "after inplace.a", example_inputs=X.as_subclass(Image))
    monkeypatch.setattr(hooks, "attend", lambda *args: hooks_attend(*args).detach())
    assert set(failures(model, example_inputs=X.as_subclass(Image))) == {TRAIN}


# Operations of hooks are no operations of the forward around them


def prune(model):
    l1_unstructured(model.block.b, "weight", 0.3)
    l1_unstructured(model.block.a, "weight", 0.5)


def scale_in_hook(model):
    model.block.a.register_forward_hook(lambda _module, _args, output: output * 1.5)


def scale_in_pre_hook(model):
    model.block.b.register_forward_pre_hook(lambda _module, args: (args[0] * 1.5,))


def spectral(model):
    nn.utils.spectral_norm(model.block.b)


def weight_norm(model):
    nn.utils.parametrizations.weight_norm(model.block.b)


HOOKS = {"prune": prune, "hook": scale_in_hook, "pre-hook": scale_in_pre_hook, "spectral": spectral,
         "weight norm": weight_norm}  # fmt: skip


class Several(Block):
    def forward(self, x):
        y = self.a(x) * 2.0
        y = self.b(y) + y
        return self.c(y) * y - x


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("site", ["b", "add", "mul[2]"])
@pytest.mark.parametrize("order", ["before", "later"])
def test_operations_of_hooks_have_no_names_in_the_forward(name, site, order):
    torch.manual_seed(1)
    model = Net()
    model.block = Several()
    model.eval()
    if order == "before":
        HOOKS[name](model)
    inject(model, f"after several.{site}", example_inputs=X)
    if order == "later":
        HOOKS[name](model)
    assert [insertion.path for insertion in injected(model)] == [f"block.{site.removesuffix('[1]')}"]
    assert verify(model).ok


# Two `bypass` at a time


@pytest.mark.parametrize("order", ["nested", "crossed", "three"])
def test_bypass_ends_with_the_last_of_them(order):
    model = build()
    count = 3 if order == "three" else 2
    contexts = [bypass(model) for _ in range(count)]
    for context in contexts:
        context.__enter__()
    for context in reversed(contexts) if order == "nested" else contexts:
        assert model.block.a.simam.bypassed
        context.__exit__(None, None, None)
    assert not model.block.a.simam.bypassed
    assert verify(model).ok


def test_what_the_user_bypassed_stays_bypassed():
    model = build()
    model.block.a.simam.bypassed = True
    with bypass(model), bypass(model):
        pass
    assert model.block.a.simam.bypassed


def test_channels_that_are_pruned_after_the_injection():
    model, half = build(), slice(2)
    a, b = model.block.a, model.block.b
    with torch.no_grad():
        a.weight, a.bias, b.weight = (
            nn.Parameter(one.clone()) for one in (a.weight[half], a.bias[half], b.weight[:, half])
        )
    assert verify(model).ok


# Modules that compute in another way where there are hooks


class OfTokens(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.c, self.l, self.t = nn.Conv2d(3, 8, 3, padding=1), layer, nn.Linear(8, 2)

    def forward(self, x):
        tokens = self.c(x).flatten(2).transpose(1, 2)
        if isinstance(self.l, nn.MultiheadAttention):
            return self.t(self.l(tokens, tokens, tokens, need_weights=False)[0])
        return self.t(self.l(tokens))


FAST = {
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
}


@pytest.mark.filterwarnings("ignore:.*nested tensor")
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("rule", [{"path": "l", "before": "input"}, {"path": "c", "after": "output"}])
def test_a_module_with_a_fast_path(name, rule):
    torch.manual_seed(1)
    model = inject(OfTokens(FAST[name]()).eval(), {"rules": [rule]}, example_inputs=X)
    assert verify(model).ok
    assert injected(model)


@pytest.mark.parametrize("other", [nn.Identity, nn.Tanh, lambda: nn.Sequential(SimAM())])
def test_another_module_in_the_place_of_a_simam(other):
    model = build()
    model.block.a.simam = other()
    assert "instead of its SimAM" in failures(model)[PLANNED]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_remembered_example_has_the_dtype_of_the_parameters(dtype):
    assert verify(build().to(dtype)).ok


class TakesTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv()

    def forward(self, x, t):
        assert t.dtype == torch.float64
        return self.c(x) * t.to(x.dtype)[:, None, None, None]


def test_the_remembered_example_keeps_other_dtypes():
    x = torch.rand(2, 4, 8, 8)
    rule = {"rules": [{"path": "c", "after": "output"}]}
    model = inject(TakesTime().eval(), rule, example_inputs=(x, torch.rand(2, dtype=torch.float64)))
    assert verify(model).ok
    assert verify(model.half()).ok


def test_plans_and_checks_keep_what_is_compiled(monkeypatch):
    model, resets = build(), []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    plan(model, "after block.b", example_inputs=X)
    verify(model)
    assert resets == []
    eject(model)
    assert resets == [1]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_model_is_verified(wrap):
    assert verify(wrap(build())).ok


class OtherOutputs(Net):
    def forward(self, x):
        y = super().forward(x)
        return {"maps": y} if self.training else (y, y.mean())


def test_an_output_of_eval_mode_alone_is_said_not_to_run_in_train_mode():
    torch.manual_seed(1)
    model, rule = OtherOutputs().eval(), {"rules": [{"block": "OtherOutputs", "after": "output"}]}
    with pytest.warns(UserWarning, match="in train mode the model has no such value, so its forward raises"):
        inject(model, rule, example_inputs=X)
    found = {check.name: check for check in verify(model).checks}
    assert found[TRAIN].ok is None
    assert "in train mode the model has no such value" in found[TRAIN].detail


@pytest.mark.parametrize("mean", [10.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_maps_of_a_large_mean_are_right(mean, dtype):
    torch.manual_seed(1)
    stock = Net().eval()
    with torch.no_grad():
        stock.stem.bias.fill_(mean)
        stock.block.a.bias.fill_(mean)
    recipe = {"rules": [{"path": path, "after": "output"} for path in ("stem", "block.a")]}
    model = inject(stock.to(dtype), recipe, example_inputs=X.to(dtype))
    assert verify(model).ok


class Direct(Block):
    """It can call the forward of a child itself, or leave the child out."""

    way = "call"

    def forward(self, x):
        if self.way == "forward":
            y = self.a.forward(x)
        elif self.way == "forward of the class":
            assert self.a.forward.__func__ is type(self.a).forward
            y = type(self.a).forward(self.a, x)
        else:
            y = x if self.way == "skip" else self.a(x)
        return self.c(torch.relu(y)) - x


@pytest.mark.parametrize("way", ["forward", "forward of the class"])
@pytest.mark.parametrize("place", ["after direct.a", "before direct.a"])
def test_a_module_whose_forward_is_called_directly(place, way):
    model = nn.Sequential(conv(3), Direct(), Direct()).eval()
    inject(model, place, example_inputs=X)
    model[1].way = "skip"
    assert verify(model).ok
    model[1].way = way
    assert "the model calls 1.a.forward(...) itself, which runs no hooks" in failures(model)[LIVE]


def test_a_report_is_false_if_a_check_failed(model):
    assert verify(model)
    simams = [part for part in model.modules() if isinstance(part, SimAM)]
    simams[0].bypassed = True
    assert not verify(model)
