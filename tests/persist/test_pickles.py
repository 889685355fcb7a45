"""deepcopy, pickle, torch.save, a fresh process: the same model each time, and nothing executed on the way."""

import copy
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from simam_inject import SimAM, bypass, eject, inject, injected
from simam_inject.editing.hooks import InputHook, OutputHook, hooks_on
from simam_inject.editing.presence import Presence, presence_of
from simam_inject.editing.rewrite import RewrittenMethod
from simam_inject.errors import FileError, ModelError
from tests.networks import BasicBlock, Network
from tests.oracle import attend
from tests.persist.networks import EXAMPLE, INSIDE, RECIPE, Mixed, mixed, net

ROOT = Path(__file__).resolve().parents[2]
X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))
ARGUMENT = {"rules": [{"block": "BasicBlock", "before": "bn2"}]}


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    return torch.load(saved(model), weights_only=False)


def weights_only(model):
    with torch.serialization.safe_globals(
        [Network, BasicBlock, Mixed, nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, set]
    ):
        return torch.load(saved(model), weights_only=True)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


COPIES = [copy.deepcopy, by_pickle, by_torch, weights_only]


def outputs(seed=0):
    return inject(net(seed), RECIPE, example_inputs=EXAMPLE, verify=False)


def arguments(seed=0):
    return inject(net(seed), ARGUMENT, example_inputs=EXAMPLE, verify=False)


def expressions(seed=0):
    return inject(mixed(seed), INSIDE, example_inputs=EXAMPLE, verify=False)


MODELS = [outputs, arguments, expressions]


def run(model, x=X):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("build", MODELS)
def test_a_copy_computes_the_same_and_lives_alone(build, make):
    model = build()
    first = model.get_submodule(injected(model)[0].module)
    first.strength, first.gain = 0.75, 1.25
    other = make(model)
    assert injected(other) == injected(model)
    assert torch.equal(run(other), run(model))
    with bypass(model):
        assert not torch.allclose(run(other), run(model), rtol=1e-2)
    assert {id(m) for m in other.modules()}.isdisjoint({id(m) for m in model.modules()})
    assert list(other.state_dict()) == list(model.state_dict())
    before = run(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert torch.equal(run(model), before)
    assert not torch.allclose(run(other), before, rtol=1e-2), "the copy runs its own weights"
    eject(other)
    assert not injected(other)
    assert injected(model)


@pytest.mark.parametrize("make", COPIES)
def test_the_rewritten_forward_of_a_copy_is_that_of_the_formula(make):
    other, plain = make(expressions()), mixed()
    with torch.no_grad():
        y = attend(plain.conv(X) * 2.0, 1e-4)
        wanted = plain.tail(y) + y.mean()
    torch.testing.assert_close(run(other), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(plain), wanted, rtol=1e-2)


LOADING = """
import sys, torch, torchvision
from torch import nn
from tests.networks import BasicBlock, Network
from tests.persist.networks import Mixed
import simam_inject
from simam_inject import SimAM  # any name of the package lets torch know all of its classes
own = [Network, BasicBlock, Mixed, set]
own += [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d]
own += [torchvision.models.ResNet, torchvision.models.resnet.BasicBlock]
for name in sys.argv[1:]:
    with torch.serialization.safe_globals(own):
        model = torch.load(name + ".pt", weights_only=True)
    x, expected = torch.load(name + ".io")
    with torch.no_grad():
        print(len(simam_inject.injected(model)), torch.equal(model(x), expected))
"""


def test_a_fresh_process_that_only_allows_the_classes_of_the_model(tmp_path):
    resnet = inject(
        torchvision.models.resnet18().eval(), "paper", example_inputs=torch.rand(1, 3, 64, 64), verify=False
    )
    row = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    inject(row, {"rules": [{"pattern": "conv2d"}]}, example_inputs=EXAMPLE, verify=False)
    for name, model in (("resnet", resnet), ("row", row), ("outputs", outputs()), ("inside", expressions())):
        torch.save(model, tmp_path / f"{name}.pt")
        torch.save((X, run(model)), tmp_path / f"{name}.io")
    command = [sys.executable, "-W", "ignore", "-c", LOADING]
    command += [str(tmp_path / name) for name in ("resnet", "row", "outputs", "inside")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.splitlines() == ["8 True", "2 True", "2 True", "1 True"], done.stderr[-2000:]


def test_weights_only_still_asks_for_the_classes_of_the_model():
    with pytest.raises(pickle.UnpicklingError, match=r"networks\.Network"):
        torch.load(saved(outputs()), weights_only=True)


def test_another_version_of_the_class_is_refused(monkeypatch):
    data = pickle.dumps(expressions())
    monkeypatch.setattr(Mixed, "mix", lambda self, x: x * 3.0)
    with pytest.raises(ModelError, match=r"source of Mixed\.mix"):
        pickle.loads(data)


def test_no_code_in_the_file():
    data = pickle.dumps(expressions())
    assert b"lambda" not in data.replace(b"e_lambda", b"")
    assert b"def mix" not in data
    assert b"return" not in data
    assert len(data) < 2 * len(pickle.dumps(mixed())) + 20_000


def test_a_part_of_a_copy_still_attends():
    model = outputs()
    part = by_pickle(model.blocks)
    features = torch.rand(1, 4, 8, 8)
    assert torch.equal(run(part, features), run(model.blocks, features))
    assert len(injected(part)) == 2
    assert not torch.allclose(run(net(0).blocks, features), run(part, features), rtol=1e-2)
    owner = by_pickle(nn.Sequential(expressions()))
    assert torch.equal(run(owner), run(expressions()))


@pytest.mark.parametrize("build", [outputs, arguments])
def test_a_part_that_is_unpickled_makes_dynamo_compare_hooks(build, monkeypatch):
    """By default it would run the code of a plain block of the same class."""
    data = pickle.dumps(build().blocks)
    monkeypatch.setattr(torch._dynamo.config, "skip_nnmodule_hook_guards", True)
    pickle.loads(data)
    assert not torch._dynamo.config.skip_nnmodule_hook_guards


def other(seed=0):
    return inject(net(seed), RECIPE, example_inputs=EXAMPLE, verify=False, attention=lambda n: nn.Conv2d(n, n, 1))


@pytest.mark.parametrize("build", [outputs, other])
def test_a_copy_is_bypassed_as_long_as_its_original(build):
    model = build()
    live, plain = run(model), run(eject(copy.deepcopy(model)))
    with bypass(model):
        with bypass(model):
            twin = copy.deepcopy(model)
        with bypass(twin):
            assert torch.equal(run(twin), plain)
        assert torch.equal(run(copy.deepcopy(twin)), plain)
        for make in (pickle.dumps, saved):
            with pytest.raises(ModelError, match="would stay bypassed: leave it first"):
                make(twin)
    assert torch.equal(run(twin), live)
    assert torch.equal(run(by_pickle(twin)), live)
    assert torch.equal(run(model), live)


def test_an_original_is_not_bypassed_as_long_as_its_copy():
    model = outputs()
    first = bypass(model)
    first.__enter__()
    twin = copy.deepcopy(model)
    with bypass(twin):
        first.__exit__(None, None, None)
        assert torch.equal(run(model), run(outputs()))
        assert not torch.equal(run(twin), run(model))
    assert torch.equal(run(twin), run(model))


def test_what_the_user_bypassed_is_copied():
    model = outputs()
    model.get_submodule(injected(model)[0].module).bypassed = True
    for make in COPIES:
        assert torch.equal(run(make(model)), run(model))


def test_shared_blocks_stay_shared():
    torch.manual_seed(1)
    block = BasicBlock(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), block, nn.ReLU(), block).eval()
    inject(model, {"rules": [{"block": "BasicBlock", "after": "conv2"}]}, example_inputs=EXAMPLE, verify=False)
    (there,) = injected(model)
    for make in COPIES[:3]:
        other = make(model)
        assert other[1] is other[3]
        assert injected(other) == (there,)
        assert torch.equal(run(other), run(model))


@pytest.mark.parametrize("build", [outputs, expressions])
def test_the_shallow_copies_of_data_parallel_run_their_own_weights(build):
    """`nn.parallel.replicate` copies each module's `__dict__` and gives it other tensors; here without a GPU."""
    model = build()
    replicas = {id(module): module._replicate_for_data_parallel() for module in model.modules()}
    for module in model.modules():
        replica = replicas[id(module)]
        replica._modules = {name: replicas[id(child)] for name, child in module._modules.items()}
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.detach() * 0.5)
    half = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.mul_(0.5)
    assert torch.equal(run(replicas[id(model)]), run(half))
    assert not torch.allclose(run(half), run(model), rtol=1e-2)


def averaged(model):
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    return ema, ema.update_parameters, ema.module


def timms(model):
    from timm.utils import ModelEmaV3

    ema = ModelEmaV3(model, decay=0.5)
    return ema, ema.update, ema.module


@pytest.mark.parametrize("make", [averaged, timms])
@pytest.mark.parametrize("build", [outputs, expressions])
def test_moving_averages_attend(make, build):
    model = build()
    model.train()
    ema, update, inner = make(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        update(model)
    plain = eject(copy.deepcopy(inner))
    assert injected(inner) == injected(model)
    wanted = copy.deepcopy(build())
    wanted.load_state_dict(inner.state_dict())
    assert torch.equal(run(ema.eval()), run(wanted.eval()))
    assert not torch.allclose(run(plain.eval()), run(ema), rtol=1e-2)
    again = by_pickle(inner)
    assert torch.equal(run(again.eval()), run(ema))


def test_an_optimizer_goes_on_after_both_were_saved(tmp_path):
    model = outputs().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()

    step(model, optimizer)
    torch.save({"model": model, "optimizer": optimizer}, tmp_path / "x.pt")
    both = torch.load(tmp_path / "x.pt", weights_only=False)
    assert {id(p) for group in both["optimizer"].param_groups for p in group["params"]} == {
        id(p) for p in both["model"].parameters()
    }
    step(model, optimizer)
    step(both["model"], both["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), both["model"].parameters(), strict=True))


# What a file may hold that somebody else has written


def state_of(hook):
    return copy.deepcopy(hook.__getstate__())


def with_first_site(state, change):
    """The state with a change of its first site, which is JSON."""
    sites = json.loads(state["sites"])
    change(sites[0])
    return state | {"sites": json.dumps(sites)}


def rebuilt(kind, state):
    """As an unpickler does it."""
    made = object.__new__(kind)
    made.__setstate__(state)
    return made


SITES = [
    lambda site: site.update(module="__class__"),
    lambda site: site.update(module="forward"),
    lambda site: site.update(path=5),
    lambda site: site.update(e_lambda=float("nan")),
    lambda site: site.update(e_lambda="0.1"),
    lambda site: site.update(channel_dim=0),
    lambda site: site.update(shape=None),
    lambda site: site.update(more=1),
    lambda site: site.pop("edit"),
    lambda site: site["edit"].update(kind="call"),
    lambda site: site["edit"].update(key=[1]),
    lambda site: site["edit"].update(module=1),
    lambda site: site.update(expression={"method": "overwrite", "digest": "0" * 16, "span": [0] * 4}),
]


@pytest.mark.parametrize("change", SITES)
@pytest.mark.parametrize("build", [outputs, arguments])
def test_a_hook_with_a_hostile_site_is_refused(build, change):
    model = build()
    hook = next(hook for module in model.modules() for hook in hooks_on(module))
    state = state_of(hook)
    assert rebuilt(type(hook), copy.deepcopy(state)).sites == hook.sites
    with pytest.raises(FileError, match="is not valid"):
        rebuilt(type(hook), with_first_site(state, change))


def test_a_hook_with_hostile_fields_is_refused():
    for kind, state in (
        (OutputHook, {"sites": "[]", "has_bias": "yes"}),
        (OutputHook, {"sites": "x", "has_bias": None}),
        (OutputHook, {"sites": [1], "has_bias": None}),
        (OutputHook, {}),
        (InputHook, {"sites": "x"}),
        (InputHook, {}),
        (RewrittenMethod, {"sites": "[]", "method": "forward", "owner": nn.ReLU()}),
    ):
        with pytest.raises(FileError, match="is not valid"):
            rebuilt(kind, state)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(holders=[(("a",), "hook")]),
        lambda state: state.update(holders=[(("a",), nn.ReLU())]),
        lambda state: state.update(holders=[(5, *state["holders"][0][1:])]),
        lambda state: state.update(holders=None),
        lambda state: state.update(witnesses=[("bn", 5)]),
        lambda state: state.update(recipes=[nn.ReLU()]),
        lambda state: state.update(recipes="paper"),
        lambda state: state.update(example={"args": ["tensor hub 3"], "kwargs": {}}),
        lambda state: state.update(example={"args": ["tensor float32 99999999 99999999"], "kwargs": {}}),
        lambda state: state.update(example={"args": [nn.ReLU()], "kwargs": {}}),
        lambda state: state.update(example=[1]),
    ],
)
def test_a_hostile_presence_is_refused(change):
    state = state_of(presence_of(outputs()))
    assert rebuilt(Presence, dict(state)).recipes == state["recipes"]
    change(state)
    with pytest.raises(FileError, match="is not valid"):
        rebuilt(Presence, state)


def test_paths_that_lead_nowhere_are_an_error_of_the_next_forward():
    model = outputs()
    state = state_of(presence_of(model))
    state["holders"] = [(("forward", "__globals__"), *rest) for _, *rest in state["holders"]]
    model._forward_pre_hooks["simam_presence"] = rebuilt(Presence, state)
    with pytest.raises(ModelError, match=r"SimAM at blocks.0.conv2 was lost"):
        model(X)


@pytest.fixture
def ran(monkeypatch):
    calls = []
    monkeypatch.setattr(Mixed, "calls", calls)
    yield calls
    assert calls == []


def hostile(method, name, where):
    """A model that a file binds a rewritten method to, under this name or as a hook."""
    from simam_inject.source import method_source

    model = expressions()
    (there,) = hooks_on(model)
    digest = method_source(getattr(Mixed, method)).digest
    state = with_first_site(state_of(there), lambda site: site["expression"].update(method=method, digest=digest))
    rewritten = rebuilt(RewrittenMethod, state | {"owner": model, "method": method})
    if where == "attribute":
        del model.__dict__["mix"]
        model.__dict__[name] = rewritten
        model._forward_pre_hooks.clear()
    else:
        model._forward_hooks[0] = rewritten
    return model


@pytest.mark.parametrize("where", ["attribute", "hook"])
@pytest.mark.parametrize("method", ["overwrite", "__init__", "extra_repr"])
def test_a_method_that_forward_does_not_run_is_not_rewritten(method, where, ran):
    with pytest.raises(ModelError, match=rf"{method} is not run by forward|source of"):
        hostile(method, method, where)


@pytest.mark.parametrize("is_taken_off", [False, True])
@pytest.mark.parametrize("name", ["forward", "overwrite"])
def test_a_method_that_a_file_binds_elsewhere_does_not_run(name, is_taken_off, ran):
    model = hostile("mix", name, "attribute")
    vars(model)[name].is_taken_off = is_taken_off
    model = weights_only(model)
    assert vars(model)[name].is_taken_off == is_taken_off
    with pytest.raises(ModelError, match="not bound under its own name"):
        getattr(model, name)(X)


def test_a_file_cannot_call_our_classes_with_nonsense():
    """An unpickler may call an allowed class with arguments of the file."""
    model = expressions()
    sites = hooks_on(model)[0].sites
    with pytest.raises(ModelError, match="is not run by forward"):
        RewrittenMethod.of(model, "overwrite", sites)
    with pytest.raises(ModelError, match="is not run by forward"):
        RewrittenMethod.of(model, "__init__", sites)
    assert isinstance(SimAM(0.1), nn.Module)


class Calls:
    """Pickled as a call of a class."""

    def __init__(self, kind, *arguments):
        self.call = kind, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "hostile",
    [
        Calls(OutputHook, [{"path": "a"}]),
        Calls(InputHook, [{"path": "a"}], ["x"]),
        Calls(Presence, [], [], [], {"args": ["tensor float32 999999 999999"], "kwargs": {}}, []),
        Calls(RewrittenMethod, mixed(), "forward", []),
    ],
)
def test_a_file_cannot_make_hooks_without_the_checks(hostile):
    with pytest.raises(Exception, match="takes no arguments"):
        weights_only(hostile)
