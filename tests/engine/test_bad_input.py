"""Bad input: one clear InjectError each, and a model left exactly as it was."""

import copy
import functools
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from simam_inject import InjectError, SimAM, bypass, eject, inject, injected, plan, simam, verify
from simam_inject.api import survey
from simam_inject.errors import ModelError, NoMatchError, RecipeError
from tests.engine.blocks import Block, Net
from tests.oracle import E_LAMBDA, assert_attended, same_bits
from tests.snapshot import snapshot

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


def network():
    """Modes mixed, gradients there, hooks there, a frozen parameter: everything that could be disturbed."""
    torch.manual_seed(1)
    model = Net(nn.Sequential(Block(), nn.BatchNorm2d(4), Block()))
    model(X).sum().backward()
    model.block[1].eval()
    model.stem.weight.requires_grad_(False)
    model.stem.register_forward_hook(lambda module, args, output: None)
    model.block[0].register_forward_pre_hook(lambda module, args: None)
    model.note = ["mine"]
    return model


@pytest.fixture
def model():
    made = network()
    before = snapshot(made)
    yield made
    assert snapshot(made) == before


def refuses(error, message, model, recipe, **options):
    for action in (inject, plan):
        with pytest.raises(error, match=message) as caught:
            action(model, recipe, **{"example_inputs": X, **options})
        assert isinstance(caught.value, InjectError)
        assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        ("after blok", NoMatchError, r"no block named 'blok'.* mean Block"),
        ("after block.conv7", NoMatchError, r"no child conv7; it has a, b"),
        ("papr", RecipeError, r"mean 'paper'"),
        ("nowhere/recipe.yaml", RecipeError, r"cannot read .?nowhere"),
        ({"e_lambda": -1, "rules": [{"block": "Block", "after": "a"}]}, RecipeError, "e_lambda"),
    ],
)
def test_a_recipe_that_is_none_or_takes_nothing(model, recipe, error, message):
    """More of them in tests/recipe and tests/matching."""
    refuses(error, message, model, recipe)


def test_the_path_of_the_model_itself_is_no_advice(model):
    refuses(NoMatchError, r"no value at 'zzzz'\.$", model, {"rules": [{"path": "zzzz", "after": "output"}]})


SHAPE = r"is a shape, .*torch.rand\(1, 3, 8, 8\)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 5, 8, 8), r"Net cannot be run on .*\(1x5x8x8\)"),
        ({"image": X}, "cannot be run on the example input"),
        ([X], "a list is one argument"),
        (X.to("meta"), "holds a tensor on the meta device"),
        ("3x8x8", "example_inputs is a str"),
        ((1, 3, 8, 8), SHAPE),
        ([1, 3, 8, 8], SHAPE),
        (torch.Size((1, 3, 8, 8)), SHAPE),
        (torch.nested.nested_tensor([X[0], X[1, :, :6]]), "holds a nested tensor, .* pad it"),
        (X.to(torch.float8_e4m3fn), "cannot be run on the example input .2x3x8x8.: RuntimeError: Input type"),
        (X.to_sparse(), "cannot be run on the example input .2x3x8x8.: RuntimeError: Input type"),
    ],
)
def test_inputs_the_model_does_not_accept(model, given, message):
    refuses(ModelError, message, model, "after block.a", example_inputs=given)


class Weighted(Net):
    """As a network on a graph, whose adjacency matrices are sparse."""

    def forward(self, x, weights):
        return super().forward(x) * weights.to(torch.float32).sum()


@pytest.mark.parametrize(
    "convert", [torch.Tensor.to_sparse, lambda x: x.to(torch.float8_e4m3fn)], ids=["sparse", "float8"]
)
def test_other_arguments_may_be_of_any_layout_and_dtype(convert):
    given = X, convert(X)
    model = inject(Weighted(Block()).eval(), "after block.a", example_inputs=given)
    assert verify(model, example_inputs=given).ok


class Raises(Net):
    """Changes itself, draws numbers, and then raises."""

    def forward(self, x):
        self.note.append("theirs")
        self.more = torch.rand(1)
        self.block[1].running_mean.add_(1)
        self.eval()
        raise ValueError("a wheel came off\nand then some")


def test_a_model_that_raises_in_its_example_forward():
    model = network()
    model.__class__ = Raises
    before = snapshot(model)
    refuses(ModelError, r"Raises cannot be run on .*\(2x3x8x8\): ValueError: a wheel came off", model, "after block")
    assert snapshot(model) == before


def test_what_is_no_module_is_refused(model):
    for thing, message in (
        (None, "nn.Module, found"),
        (3, "nn.Module, found an object of type int"),
        ("resnet50", "'resnet50'; build it first"),
        ([model], "nn.Module, found"),
        ({"model": model}, "nn.Module, found"),
        (torch.zeros(3), "nn.Module, found"),
        (Net, "the class Net; give an instance"),
        (model.forward, "the function forward; give the model"),
    ):
        refuses(ModelError, message, thing, "after block.a")


@pytest.mark.parametrize("function", [eject, injected, verify, survey, lambda thing: bypass(thing).__enter__()])
def test_no_module_for_the_other_functions(function):
    for thing in (None, Net, "resnet50"):
        with pytest.raises(ModelError, match=r"expected an nn\.Module, found"):
            function(thing)


def test_a_part_that_was_injected_is_named_where_the_whole_is_verified():
    model = inject(network(), "after block.a", example_inputs=torch.rand(2, 3, 8, 8))
    whole = torch.optim.swa_utils.AveragedModel(model)
    with pytest.raises(ModelError, match="into the part 'module' of this AveragedModel"):
        verify(whole)
    assert verify(whole.module).ok


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_wrapped_in_ddp(process_group):
    inner = network().requires_grad_()
    before = snapshot(inner)
    wrapped = nn.parallel.DistributedDataParallel(inner)
    refuses(ModelError, r"already wrapped \(DistributedDataParallel\): inject first", wrapped, "after block.a")
    assert snapshot(inner) == before


def test_wrapped_in_fsdp(process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network().requires_grad_()
    model.zero_grad()
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.block[0], mesh=mesh)
    refuses(ModelError, r"already sharded \(fully_shard\): inject and verify it first", model, "after block.a")
    fully_shard(model, mesh=mesh)
    refuses(ModelError, r"already wrapped \(FSDP.*inject first", model, "after block.a")


def test_a_sharded_model_is_not_verified(process_group):
    """Between forwards it has no whole parameters, and a copy of it has no storage."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = inject(network().requires_grad_(), "after block.a", example_inputs=X)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"already sharded \(fully_shard\): inject and verify it first"):
            verify(model)
        model(X)


def test_wrapped_by_compile():
    model = network()
    wrapped = torch.compile(model)
    before = snapshot(model)
    refuses(ModelError, r"already wrapped \(torch\.compile\)", wrapped, "after block.a")
    assert snapshot(model) == before


def test_wrapped_in_data_parallel(model):
    refuses(ModelError, r"already wrapped \(DataParallel\)", nn.DataParallel(model), "after block.a")


def test_a_script_module_is_refused(model):
    with pytest.warns((FutureWarning, DeprecationWarning), match="is deprecated"):
        scripted = torch.jit.trace(copy.deepcopy(model).eval(), X, check_trace=False)
    refuses(ModelError, r"torch\.jit\.ScriptModule.*inject the Python model", scripted, "after block.a")


def test_an_exported_program_is_refused(model):
    exported = torch.export.export(copy.deepcopy(model).eval(), (X,))
    refuses(ModelError, "nn.Module, found .*ExportedProgram", exported, "after block.a")


def test_parameters_on_the_meta_device_are_named():
    with torch.device("meta"):
        model = network_without_data()
    refuses(ModelError, r"on the meta device \(stem\.weight\)", model, "after block.a")
    partly = network_without_data()
    partly.block.b.to("meta")
    refuses(ModelError, r"on the meta device \(block\.b\.weight\)", partly, "after block.a")
    attended = inject(network_without_data(), "after block.a", example_inputs=X).to("meta")
    with pytest.raises(ModelError, match=r"on the meta device \(stem\.weight\)"):
        verify(attended)


def network_without_data():
    return Net(Block())


def test_lazy_modules_stay_lazy():
    model = nn.Sequential(nn.LazyConv2d(4, 3), Block())
    refuses(ModelError, r"0\.weight of this model has no shape yet \(a lazy module\)", model, "after block.a")
    assert type(model[0]) is nn.LazyConv2d
    assert model[0].has_uninitialized_params()


class Built(nn.Module):
    """Builds a layer for the channels that it is given."""

    def __init__(self):
        super().__init__()
        self.a, self.proj = nn.Conv2d(3, 4, 3, padding=1), None

    def forward(self, x):
        y = self.a(x)
        if self.proj is None:
            self.proj = nn.Conv2d(y.shape[1], 4, 3, padding=1)
        return self.proj(y)


def test_a_layer_that_the_first_forward_builds():
    model = Built().eval()
    refuses(ModelError, r"adds a layer \(proj\): run one forward", model, "after conv2d")
    model(X)
    assert [site.path for site in injected(inject(model, "after conv2d", example_inputs=X))] == ["a", "proj"]


def test_nothing_that_can_be_attended():
    small = torch.rand(2, 3, 1, 1)
    torch.manual_seed(1)
    model = Net(Block())
    before = snapshot(model)
    refuses(NoMatchError, r"cannot be applied to any.*\n.*1x1 map", model, "after block.a", example_inputs=small)
    assert snapshot(model) == before


class KeepsLeaf(Block):
    """Uses what `a` computes for nothing."""

    def forward(self, x):
        self.a(x)
        return self.b(x)


def test_a_value_that_nobody_reads():
    refuses(NoMatchError, "its output is never used", Net(KeepsLeaf()), "after keepsleaf.a")


class NeverCalls(Block):
    def forward(self, x):
        return self.a(x)


class Spare(nn.Module):
    """Holds a block that it never calls."""

    def __init__(self):
        super().__init__()
        self.stem, self.spare = nn.Conv2d(3, 4, 3), Block()

    def forward(self, x):
        return self.stem(x)


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (Net(NeverCalls()), {"block": "NeverCalls", "after": "b"}),
        *((Spare(), {"block": "Block", "before": place}) for place in ("input", "residual", "a", "add")),
        *((Spare(), {"block": "Block", "after": place}) for place in ("output", "output:1", "a", "add")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else type(value).__name__,
)
def test_a_module_that_is_never_called(model, rule):
    refuses(NoMatchError, "never ran in the example forward", model, {"rules": [rule]})


def test_forward_replaced_on_the_instance():
    torch.manual_seed(1)
    model = Net(Block()).eval()
    inner = model.block.forward
    model.block.forward = lambda x: inner(x) * 2
    with torch.no_grad():
        plain = model(X)
        attended = 2 * model.block.b(simam(model.block.a(model.stem(X))))
    before = snapshot(model)
    assert plan(model, "after block.a", example_inputs=X).insertions
    assert snapshot(model) == before
    inject(model, "after block.a", example_inputs=X)
    with torch.no_grad():
        assert same_bits(model(X), attended)
        assert same_bits(eject(model)(X), plain)


def test_user_modules_called_simam_are_not_ours():
    class Own(Block):
        def __init__(self):
            super().__init__()
            self.simam_a = SimAM()

        def forward(self, x):
            return self.b(self.simam_a(self.a(x)))

    model = Net(Own())
    assert injected(model) == ()
    inject(model, "after own.a", example_inputs=X)
    assert [insertion.path for insertion in injected(model)] == ["block.a"]
    assert verify(model, example_inputs=X).ok


class CallsItself(Block):
    def __call__(self, x):
        return self.b(self.a(x))


class CallIsForward(Block):
    __call__ = Block.forward


class InheritsCall(CallsItself):
    def forward(self, x):
        return self.a(x)


class CallsPartOnly(Block):
    def __call__(self, x):
        return self.a.__call__(x)


@pytest.mark.parametrize("kind", [CallsItself, CallIsForward, InheritsCall, CallsPartOnly])
def test_a_model_whose_call_runs_no_hooks(kind):
    model = kind()
    refuses(ModelError, r"overrides __call__, so hooks on it do not run", model, "after block.a")
    assert injected(model) == ()


@pytest.mark.parametrize("kind", [CallsItself, CallIsForward, InheritsCall, CallsPartOnly])
def test_a_child_whose_call_runs_no_hooks(kind):
    model = Net(kind())
    message = rf"block: .*the __call__ of {kind.__name__} runs no hooks"
    refuses(NoMatchError, message, model, {"rules": [{"path": "block", "after": "output"}]})


class CallsSuper(Block):
    def __call__(self, x, scale=1.0):
        return super().__call__(x) * scale


class InheritsSuper(CallsSuper):
    def __call__(self, *args):
        return super().__call__(*args)


class Annotated(Block):
    __call__ = nn.Module.__call__


class NamesBase(Block):
    def __call__(self, x):
        return Block.__call__(self, x)


@pytest.mark.parametrize("kind", [CallsSuper, InheritsSuper, Annotated, NamesBase])
@pytest.mark.parametrize("whole", [False, True])
def test_a_call_that_calls_the_one_of_its_class_runs_hooks(kind, whole):
    stock = kind().double().eval() if whole else Net(kind()).double().eval()
    site, x = ("a", torch.rand(2, 4, 8, 8).double()) if whole else ("block.a", X.double())
    ours = inject(copy.deepcopy(stock), f"after {kind.__name__.lower()}.a", e_lambda=E_LAMBDA, example_inputs=x)
    assert_attended(ours(x), stock, [site], x)
    del ours.get_submodule(site).simam
    with pytest.raises(ModelError, match="lost"):
        ours(x)


class CallsPart(Block):
    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()

    def __call__(self, x):
        return self.act(super().__call__(x))


class CallsPartAtLast(CallsPart):
    def __call__(self, x):
        super().__call__(x)
        return self.act.__call__(x)


class ScalesBefore(Block):
    def __call__(self, x):
        return super().__call__(2 * x)


class Contiguous(Block):
    def __call__(self, x: torch.Tensor, *args: object) -> torch.Tensor:
        """A hint for type checkers."""
        return super().__call__(x, *args).contiguous()


class KeepsDtype(Block):
    def __call__(self, x):
        return nn.Module.__call__(self, x).to(x.dtype)


class WithoutGradients(Block):
    @torch.no_grad()
    def __call__(self, x):
        return super().__call__(x)


class Looks(Block):
    def __call__(self, x):
        y = super().__call__(x)
        self.mean = y.mean()
        return y


class Profiled(Block):
    def __call__(self, x):
        with torch.profiler.record_function("block"):
            return super().__call__(x)


class ByVariable(Block):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = super().__call__(x)
        if not self.training:
            x = x.to(torch.double)
        return x


class Tries(Block):
    def __call__(self, x):
        try:
            return cast(torch.Tensor, super().__call__(x))
        finally:
            self.done = True


class Checkpoints(Block):
    """As the `GradientCheckpointingLayer` of transformers."""

    is_saving = False

    def __call__(self, *args, **kwargs):
        if self.is_saving:
            return checkpoint(functools.partial(super().__call__, **kwargs), *args, use_reentrant=False)
        return super().__call__(*args, **kwargs)


class Saves(Checkpoints):
    is_saving = True


class DoublesCheckpoint(Block):
    def __call__(self, x):
        return 2 * checkpoint(super().__call__, x, use_reentrant=False)


class Rebinds(Block):
    def __call__(self, x):
        out: torch.Tensor = super().__call__(x)
        if self.a is not None:
            out = out + 1
        return out


class Replaces(Block):
    other = False

    def __call__(self, x):
        out = super().__call__(x)
        if self.other:
            out = torch.tanh(x)
        return out


class Adds(Block):
    def __call__(self, x):
        x = super().__call__(x)
        x += 1
        return x


class Doubles(Block):
    def __call__(self, x):
        call = super().__call__
        return 2 * call(x)


class Pairs(Block):
    def __call__(self, x):
        return (super().__call__(x),)[0]


class Twice(Net):
    def forward(self, x):
        return self.block(self.block(self.stem(x)))


def twice(function):
    @functools.wraps(function)
    def wrapper(*args):
        return 2 * function(*args)

    return wrapper


class Decorated(Block):
    @twice
    def __call__(self, x):
        return super().__call__(x)


@pytest.mark.parametrize(
    "kind",
    [
        CallsSuper,
        InheritsSuper,
        CallsPart,
        CallsPartAtLast,
        Decorated,
        Looks,
        DoublesCheckpoint,
        Rebinds,
        Replaces,
        Adds,
        Doubles,
        Pairs,
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_the_output_is_refused_where_a_call_of_ones_own_may_return_another_one(kind, whole):
    model, x = (kind(), torch.rand(2, 4, 8, 8)) if whole else (Net(kind()), X)
    message = f"the __call__ of {kind.__name__} may return another tensor"
    refuses(NoMatchError, message, model, f"after {kind.__name__.lower()}", example_inputs=x)


@pytest.mark.parametrize(
    "kind",
    [
        ScalesBefore,
        Annotated,
        NamesBase,
        Contiguous,
        KeepsDtype,
        WithoutGradients,
        Profiled,
        ByVariable,
        Tries,
        Checkpoints,
        Saves,
    ],
)
@pytest.mark.parametrize("net", [Net, Twice])
def test_a_call_that_returns_what_the_forward_returns_is_attended(kind, net):
    stock = net(kind()).double().eval()
    ours = inject(copy.deepcopy(stock), f"after {kind.__name__.lower()}", e_lambda=E_LAMBDA, example_inputs=X.double())
    assert_attended(ours(X.double()), stock, ["block"], X.double())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": "a"}, RecipeError, r"strength .* 0 .*found 'a'"),
        ({"strength": None}, RecipeError, r"strength .* 0 .*found None"),
        ({"strength": 1.5}, RecipeError, r"strength .* 0 .*found 1.5"),
        ({"strength": float("nan")}, RecipeError, r"strength .* 0 .*found nan"),
        ({"attention": 3}, ModelError, "attention must be a function.*found 3"),
        ({"attention": "se"}, ModelError, "attention must be a function.*found 'se'"),
        ({"attention": [3]}, ModelError, "attention"),
        ({"attention": nn.Conv2d(4, 4, 1)}, ModelError, r"attention must be a function.*found Conv2d\(4"),
    ],
)
def test_options_of_another_kind(model, options, error, message):
    with pytest.raises(error, match=message):
        inject(model, "after block.a", example_inputs=X, **options)


@pytest.mark.parametrize("strength", [1, 0.5, np.float32(0.5), np.float64(0.5)])
def test_strength_may_be_any_real_number(model, strength):
    model = inject(copy.deepcopy(model), "after block.a", example_inputs=X, strength=strength)
    assert {(one.strength, type(one.strength)) for one in injected(model)} == {(float(strength), float)}


class AnswersAll(Block):
    answer = 1.0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return self.answer


class AnswersNone(AnswersAll):
    answer = None


class Delegates(Block):
    """Looks in its child."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("a"), name, self)


@pytest.mark.parametrize("kind", [AnswersAll, AnswersNone, Delegates])
@pytest.mark.parametrize("path", ["block", "block.a"])
def test_a_module_that_answers_to_every_name(kind, path):
    model = inject(Net(kind()), {"rules": [{"path": path, "after": "output"}]}, example_inputs=X)
    assert [insertion.path for insertion in injected(model)] == [path]
    assert injected(eject(model)) == ()
    assert "simam" not in model.block._modules


class Collects(Block):
    """The map is read after the forward, by a loss."""

    def __init__(self):
        super().__init__()
        self.feats, self.store = [], {}

    def forward(self, x):
        self.feats.append(self.a(x))
        return self.b(x)


class CollectsKey(Collects):
    def forward(self, x):
        self.store["a"] = self.a(x)
        return self.b(x)


class CollectsAttribute(Collects):
    def forward(self, x):
        self.last = self.a(x)
        return self.b(x)


@pytest.mark.parametrize("kind", [Collects, CollectsKey, CollectsAttribute])
def test_a_map_that_the_forward_only_collects(kind):
    torch.manual_seed(1)
    model = Net(kind()).eval()
    with torch.no_grad():
        wanted = simam(model.block.a(model.stem(X)))
    inject(model, {"rules": [{"path": "block.a", "after": "output"}]}, example_inputs=X)
    with torch.no_grad():
        model(X)
    block = model.block
    found = block.feats[-1] if block.feats else block.store.get("a", getattr(block, "last", None))
    assert same_bits(found, wanted)


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, lambda net: torch.jit.trace(net, X, check_trace=False)])
def test_while_a_forward_is_traced(model, trace):
    class Plans(nn.Module):
        def forward(self, x):
            with pytest.raises(ModelError, match="a forward is being traced"):
                plan(model, "after block.a", example_inputs=X)
            return x + 1

    trace(Plans())


class Conditional(Block):
    def forward(self, x):
        return torch.cond(x.sum() > 0, self.a, self.b, (x,))


class Looping(Block):
    def forward(self, x):
        _, y = torch.while_loop(lambda i, _: i < 2, lambda i, y: (i + 1, y * 2), (torch.tensor(0), self.a(x).detach()))
        return self.b(y)


@pytest.mark.parametrize("kind", [Conditional, Looping])
def test_operators_that_compile_a_part_of_the_forward(kind):
    model = Net(kind()).eval().requires_grad_(False)
    model(X)
    with pytest.raises(ModelError, match="compiles a part of its forward when it runs"):
        inject(model, "every-conv", example_inputs=X)


FORWARDS = {
    "scaled": lambda self, x: self.c(x) * self.scale + x,
}


class FromTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.scale = nn.Conv2d(4, 4, 3, padding=1), nn.Parameter(torch.ones(1))

    forward = FORWARDS["scaled"]


def test_a_forward_whose_source_is_a_part_of_a_statement():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), FromTable(), FromTable())
    with pytest.raises(NoMatchError, match="the source of its forward is not available"):
        plan(network, "residual", example_inputs=torch.rand(1, 3, 16, 16))
