"""Fault A: a forward that would take another branch on a twin is planned for the branch of the model, or refused.

Twins hold meta tensors, and copies of what the model holds; recording gives aliases where an operation returns its own
input. A forward can look at each of these. In every case `b` runs and `c` does not, or nothing at all is injected.
"""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject import InjectError, inject, injected, verify
from tests.engine.blocks import build, conv, run
from tests.engine.python_modules import image
from tests.oracle import E_LAMBDA, assert_attended, assert_right, hooked

RECIPE = {"e_lambda": E_LAMBDA, "rules": [{"pattern": "conv2d"}]}


class Net(nn.Module):
    """`looks` at what `a` computes, and `b` runs if it is true."""

    def __init__(self, looks):
        super().__init__()
        self.a, self.b, self.c, self.looks = conv(), conv(), conv(), looks

    def forward(self, x):
        y = self.a(x)
        return self.b(y) if self.looks(y) else self.c(y)


def caught(question):
    def look(y):
        try:
            return question(y)
        except Exception:
            return False

    return look


def suppressed(y):
    with contextlib.suppress(Exception):
        return float(y.std()) > 0
    return False


def remembers(y):
    seen = {id(y)}
    return id(y.to(y.dtype)) in seen


LOOKS = {
    "max": caught(lambda y: bool(y.abs().max() > 0)),
    "suppress": suppressed,
    "numpy": caught(lambda y: y.detach().numpy().size > 0),
    "tolist": caught(lambda y: len(y.tolist()) == 2),
    "is_meta": lambda y: not y.is_meta,
    "device": lambda y: y.device.type in ("cpu", "cuda"),
    "data_ptr": lambda y: y.data_ptr() != 0,
    "relu in place": lambda y: F.relu(y, inplace=True) is y,
    "add_": lambda y: y.add_(1) is y,
    "identity": lambda y: nn.Identity()(y) is y,
    "dropout": lambda y: nn.Dropout(0.0).eval()(y) is y,
    "contiguous": lambda y: y.contiguous() is y,
    "to": remembers,
}


def takes_the_way_of_the_model(factory):
    stock, model = build(factory), build(factory)  # copies would lose what is compared by identity
    plain = run(stock, image())
    try:
        inject(model, RECIPE, example_inputs=image())
    except InjectError as error:
        message = str(error)
        assert injected(model) == ()
        assert "c" in message or "b" in message
        return
    assert [insertion.path for insertion in injected(model)] == ["a", "b"]
    with hooked(stock, ["a", "b"]):
        expected = run(stock, image())
    assert_right(run(model, image()), expected, plain)
    assert verify(model).ok


@pytest.mark.parametrize("name", LOOKS)
def test_what_a_value_is(name):
    takes_the_way_of_the_model(lambda: Net(LOOKS[name]))


# Identity: what a module holds is compared with something that stands elsewhere


class Mode:
    def __init__(self, name):
        self.name = name


class Special(nn.Parameter):
    def gain(self):
        return 2.0


class Modes:
    fast, slow = Mode("fast"), Mode("slow")


MISSING, FAST = object(), Mode("fast")


def double(y):
    return y * 2


class Holds(nn.Module):
    held = None

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(), conv(), conv()
        self.prepare()

    def prepare(self):
        pass

    def forward(self, x):
        y = self.a(x)
        return self.b(y) if self.is_it() else self.c(y)


class Sentinel(Holds):
    def prepare(self):
        self.held = MISSING

    def is_it(self):
        return self.held is MISSING


class SentinelInside(Holds):
    def prepare(self):
        self.held = {"fill": [MISSING]}

    def is_it(self):
        return self.held["fill"][0] is MISSING


class Plain(Holds):
    def prepare(self):
        self.held = FAST

    def is_it(self):
        return self.held == FAST


class OfAClass(Holds):
    def prepare(self):
        self.held = {"mode": Modes.fast}

    def is_it(self):
        return self.held["mode"] is Modes.fast


class GlobalFunction(Holds):
    def prepare(self):
        self.held = double

    def is_it(self):
        return self.held is double


class AttributeOfWeight(Holds):
    def prepare(self):
        self.a.weight.gain = 2.0

    def is_it(self):
        return getattr(self.a.weight, "gain", 1.0) == 2.0


class AttributeOfBuffer(Holds):
    def prepare(self):
        self.register_buffer("table", torch.zeros(1, dtype=torch.float64))
        self.table.tags = ["b"]

    def is_it(self):
        return "b" in getattr(self.table, "tags", ())


class ClassOfParameter(Holds):
    def prepare(self):
        self.scale = Special(torch.ones(1))

    def is_it(self):
        return isinstance(self.scale, Special) and self.scale.gain() == 2.0


@pytest.mark.parametrize(
    "factory",
    [Sentinel, SentinelInside, Plain, OfAClass, GlobalFunction, AttributeOfWeight, AttributeOfBuffer, ClassOfParameter],
)  # fmt: skip
def test_what_a_module_holds(factory):
    takes_the_way_of_the_model(factory)


class ReadsAttribute(Holds):
    def prepare(self):
        self.a.weight.gain = 2.0

    def forward(self, x):
        return self.b(self.a(x)) * self.a.weight.gain


class ReadsMethod(ReadsAttribute):
    def prepare(self):
        self.scale = Special(torch.ones(1))

    def forward(self, x):
        return self.b(self.a(x)) * self.scale.gain()


class ReadsInput(ReadsAttribute):
    def prepare(self):
        pass

    def forward(self, x):
        return self.b(self.a(x)) * getattr(x, "gain", 1.0)


@pytest.mark.parametrize("factory", [ReadsAttribute, ReadsMethod, ReadsInput])
def test_attributes_of_tensors_and_classes_of_parameters_are_there(factory):
    stock, model = build(factory), build(factory)
    x = image()
    x.gain = 3.0
    inject(model, RECIPE, example_inputs=x)
    assert_attended(run(model, x), stock, ["a", "b"], x)


# A forward that copies or compiles a part


class Copies(Holds):
    def forward(self, x):
        return self.b(copy.deepcopy(self.a)(x))


class CopiesBlock(Holds):
    def prepare(self):
        self.body = nn.Sequential(conv(), nn.ReLU())

    def forward(self, x):
        return self.b(copy.deepcopy(self.body)(self.a(x)))


class Averages(Holds):
    def forward(self, x):
        mean = copy.copy(self.c)
        return self.b(self.a(x)) + mean(x)


@pytest.mark.parametrize("factory", [Copies, CopiesBlock, Averages])
def test_a_forward_that_copies_a_module(factory):
    stock = build(factory)
    model = inject(
        copy.deepcopy(stock), {**RECIPE, "rules": [{"path": "b", "after": "output"}]}, example_inputs=image()
    )
    assert_attended(run(model, image()), stock, ["b"], image())


@pytest.mark.parametrize("part", ["a", "b", "both"])
def test_a_child_that_was_compiled_before_runs_as_it_is_written(part, eager_backend, recwarn):
    stock = build(Copies)
    stock.forward = lambda x: stock.b(stock.a(x))
    model = nn.Sequential(conv().double(), nn.Sequential(stock.a, nn.Tanh()), stock.b).eval()
    plain_model = copy.deepcopy(model)
    for index in {"a": [1], "b": [2], "both": [1, 2]}[part]:
        model[index] = torch.compile(model[index], backend=eager_backend)
    inject(model, {"e_lambda": E_LAMBDA, "rules": [{"path": "0", "after": "output"}]}, example_inputs=image())
    assert not [one for one in recwarn if "recompile" in str(one.message)]
    assert_attended(run(model, image()), plain_model, ["0"], image())


class Decorated(Holds):
    def __init__(self, backend):
        super().__init__()
        self.act = torch.compile(F.gelu, backend=backend)

    def forward(self, x):
        return self.b(self.act(self.a(x)))


@pytest.mark.parametrize("where", ["instance", "class"])
def test_a_forward_that_was_compiled_before_runs_as_it_is_written(where, eager_backend, recwarn):
    stock = build(lambda: Decorated(eager_backend))
    model = copy.deepcopy(stock)
    if where == "class":
        forward = torch.compile(Decorated.forward, backend=eager_backend)
        model.__class__ = type("Decorated", (Decorated,), {"forward": forward})
    else:
        model.forward = torch.compile(model.forward, backend=eager_backend)
    inject(model, {"e_lambda": E_LAMBDA, "rules": [{"path": "a", "after": "output"}]}, example_inputs=image())
    assert not [one for one in recwarn if "recompile" in str(one.message)]
    assert_attended(run(model, image()), stock, ["a"], image())


class CallsCompiled(Holds):
    """Runs a function of this module on the result of `a`, or one that runs `a` itself."""

    def forward(self, x):
        return self.b(COMPILED[0](self, x))


COMPILED = []
WRITTEN = {"function": lambda net, y: F.gelu(y) * 2, "child": lambda net, x: F.gelu(net.a(x)) * 2}


@pytest.mark.skipif(not hasattr(torch._dynamo.eval_frame, "_use_eager_on_nested_compile"), reason="needs torch 2.14")
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("part", WRITTEN)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_functions_that_a_forward_calls_run_as_they_are_written(part, fullgraph, recwarn):
    graphs = []

    def backend(graph, _example):
        graphs.append(graph)
        return graph.forward

    COMPILED[:] = [torch.compile(WRITTEN[part], backend=backend, fullgraph=fullgraph)]
    stock = build(CallsCompiled)
    run(stock, image())
    model, count = copy.deepcopy(stock), len(graphs)
    rule = {"path": "b", "after": "output"} if part == "function" else {"path": "a", "after": "output"}
    inject(model, {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=image())
    assert len(graphs) == count == 1
    assert not [one for one in recwarn if "recompile" in str(one.message)]
    assert_attended(run(model, image()), stock, [rule["path"]], image())
