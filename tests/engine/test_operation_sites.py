"""A site that is an operation follows its value, not the module that returned or read it in the example forward.

Each case is the text of a block: `<<...>>` is the attended expression, and a line with `#@` stands in the oracle alone.
The same text makes both classes, so that only the place of SimAM is compared, whatever flags, sizes and modes decide.
"""

import copy
import functools
import itertools
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from simam_inject import bypass, eject, inject, injected, plan
from simam_inject.errors import NoMatchError
from simam_inject.planning.insertions import Input, Output, Rewritten
from tests.oracle import E_LAMBDA, attend, distance, same_bits

HEAD = """
import torch
from torch import nn

class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.h, self.k = (nn.Conv2d(4, 4, 3, padding=1) for _ in "chk")
        self.r = nn.ReLU()
        self.flag, self.prev, self.kept, self.calls, self.__gain = False, None, [], [], 1.5
"""
COUNT = itertools.count()


class Net(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem, self.b, self.tail = nn.Conv2d(4, 4, 3, padding=1), block(), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.b(self.stem(x))
        return [self.tail(each) for each in (y if isinstance(y, tuple) else (y,))]


def image(side=8, batch=2, seed=1):
    noise = torch.Generator().manual_seed(seed)
    return torch.randn((batch, 4, side, side), generator=noise, dtype=torch.float64)


@pytest.fixture
def nets(tmp_path):
    """(stock, oracle) of one text, with the same weights."""

    def make(text):
        made = []
        for marks in (("(", ")", "#@"), ("attend(", ")", "")):
            body = text
            for mark, instead in zip(("<<", ">>", "#@ "), marks, strict=True):
                body = body.replace(mark, instead)
            path = tmp_path / f"block_{next(COUNT)}.py"
            path.write_text(HEAD.format(name="Block") + body)
            names = {"attend": attend, "__name__": path.stem}
            exec(compile(path.read_text(), str(path), "exec"), names)  # noqa: S102 - as a user's file is
            torch.manual_seed(4)
            made.append(Net(names["Block"]).double().eval())
        return made

    return make


def recipe(site):
    return {"e_lambda": E_LAMBDA, "rules": [{"block": "Block", "after": site}]}


def run(model, x):
    torch.manual_seed(3)
    with torch.no_grad():
        return model(x), list(model.b.kept)


def flag(model):
    model.b.flag = True


def training(model):
    model.train()


def callback(model):
    model.b.calls.append(model.b.kept.append)


def nothing(_model):
    pass


# name: (site, change, side of the image afterwards, forward)
CASES = {
    "another reader in train mode": ("add", training, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        z = self.h(y)
        return z + y if self.training else z * 2
"""),
    "another reader behind a flag": ("add", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        z = self.h(y)
        if self.flag:
            z = z + y
        return z * 2
"""),
    "another reader at another size": ("add", nothing, 24, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        z = self.h(y)
        return z + y if x.shape[-1] == 24 else z * 2
"""),
    "another output": ("add", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        if self.flag:
            y = torch.tanh(y)
        return y
"""),
    "an early return": ("add", flag, 8, """
    def forward(self, x):
        if self.flag:
            return self.k(x)
        y = <<self.c(x) + x>>
        return y
"""),
    "a tuple in train mode": ("mul", training, 8, """
    def forward(self, x):
        y = <<self.c(x) * 2>>
        return (y, self.h(y)) if self.training else y
"""),
    "the reader runs twice": ("add", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        z = self.h(y)
        if self.flag:
            z = z + self.h(x)
        return z * 2
"""),
    "the reader runs in another method": ("add", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        z = self.h(y)
        return z + self.more(x) if self.flag else z * 2

    def more(self, x):
        return self.h(x)
"""),
    "the reader has two names": ("add", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        z = self.h(y)
        return z + getattr(self, "h")(x) if self.flag else z * 2
"""),
    "the reader gets another value": ("add", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        return self.h(x if self.flag else y) * 2
"""),
    "a closure made before": ("add", flag, 8, """
    def forward(self, x):
        later = lambda: y
        y = <<self.c(x) + x>>
        z = self.h(y)
        return z + later() if self.flag else z * 2
"""),
    "a closure of a returned value": ("add", flag, 8, """
    def forward(self, x):
        def scale():
            nonlocal y
            y = y * 2
        y = <<self.c(x) + x>>
        if self.flag:
            scale()
        return y
"""),
    "kept on the module": ("add", nothing, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        self.kept.append(y)
        return self.h(y)
"""),
    "kept and returned": ("add", nothing, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        self.kept = [y]
        return y
"""),
    "handed to callbacks": ("add", callback, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        for call in self.calls:
            call(y)
        return self.h(y)
"""),
    "from call to call": ("add", nothing, 8, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        z = self.h(y) if self.prev is None else self.h(y) + self.prev
        self.prev = y
        return z
"""),
    "in place": ("add", flag, 8, """
    def forward(self, x):
        y = self.c(x)
        y += x
        #@ y = attend(y)
        return self.h(y) + y if self.flag else self.h(y)
"""),
    "one call of a shared child": ("r[2]", flag, 8, """
    def forward(self, x):
        y = self.r(self.c(x))
        y = <<self.r(self.k(y))>>
        z = self.h(y)
        if self.flag:
            z = z + y
        return z
"""),
    "a plain chain": ("add", training, 12, """
    def forward(self, x):
        y = <<self.c(x) + x>>
        return self.h(y)
"""),
    "private names": ("mul", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) * self.__gain>>
        return self.h(y) + y if self.flag else self.h(y) - y
"""),
    "its own class": ("mul", flag, 8, """
    def forward(self, x):
        y = <<self.c(x) * 1.5>>
        if isinstance(self, Block) and self.flag:
            y = y + len(super(Block, self).extra_repr())
        return self.h(y) + y
"""),
    "a chain over lines": ("mul", nothing, 8, """
    def forward(self, x):
        y = <<self.c(x)
             .relu()
             .mul(2.0)>>
        return self.h(y) + y
"""),
    "the other branch": ("cat", flag, 8, """
    def forward(self, x):
        y = self.c(x)
        if self.flag:
            y = <<torch.cat([y.relu(), x], 1)>>[:, 2:6]
        else:
            y = <<torch.cat([y, x], 1)>>[:, :4]
        return self.h(y) + y
"""),
    "the other branch at another size": ("cat", nothing, 12, """
    def forward(self, x):
        y = self.c(x)
        if x.shape[-1] == 10:
            y = y * 2
        elif x.shape[-1] == 12:
            y = self.k(y)
            y = self.k(<<torch.cat((y, x), dim=1)>>[:, :4])
        else:
            y = <<torch.cat([y, x], 1)>>[:, :4]
        return self.h(y) + y
"""),
    "in front of an early return": ("mul", flag, 8, """
    def forward(self, x):
        if self.flag:
            return self.h(<<self.k(x).mul(2)>>)
        y = <<self.c(x) * 3>>
        return self.h(y) + y
"""),
    "the other value of a condition": ("add", training, 8, """
    def forward(self, x):
        y = self.c(x)
        y = torch.tanh(<<y + x>>) if self.training else <<y + x>>
        return self.h(y) * 2
"""),
    "in a handler": ("add", flag, 8, """
    def forward(self, x):
        try:
            if self.flag:
                raise ValueError
            y = <<self.c(x) + x>>
        except ValueError:
            y = <<self.k(x) + x>>
        return self.h(y) * 2
"""),
    "in another case": ("add", flag, 8, """
    def forward(self, x):
        match self.flag:
            case True:
                y = self.k(x)
                y += x
                #@ y = attend(y)
            case _:
                y = <<self.c(x) + x>>
        return self.h(y) * 2
"""),
    "the second one in another branch": ("mul[2]", flag, 8, """
    def forward(self, x):
        y = self.c(x) * 2
        if self.flag:
            y = <<y * 3>>.relu()
        else:
            y = <<y * 5>>
        return self.h(y) + y
"""),
    "numbers in another branch": ("add", nothing, 12, """
    def forward(self, x):
        if x.shape[-1] == 12:
            left = x.shape[2] + 1
            y = self.k(x)[:, :, :left]
            y = <<y + x>>
        else:
            y = <<self.c(x) + x>>
        return self.h(y) * 2
"""),
    "nothing in another branch": ("add", flag, 8, """
    def forward(self, x):
        if self.flag:
            y = self.k(x) / (x.shape[-1] + 1)
        else:
            y = <<self.c(x) + x>>
        return self.h(y) * 2
"""),
    "another map in another branch": ("cat", flag, 8, """
    def forward(self, x):
        if self.flag:
            return self.h(torch.cat([x, x, x], 1)[:, 2:6])
        return self.h(<<torch.cat([self.c(x), x], 1)>>[:, :4])
"""),
    "a loop in another branch": ("mul", flag, 8, """
    def forward(self, x):
        if self.flag:
            y = self.k(x)
            for _ in range(2):
                y = y * 2
            return y
        y = <<self.c(x) * 2>>
        return self.h(y)
"""),
    "a doc string further left": ("mul", nothing, 8, '''
    def forward(self, x):
        """Scales
and adds.
"""
        y = <<self.c(x) * 3>>
        return self.h(y) + y
'''),
}  # fmt: skip


UNCLEAR = {
    "an operation that may not run": """
    def forward(self, x):
        y = self.c(x)
        if self.flag:
            y = y * 2
            return self.h(self.k(y) * 3)
        if self.prev is not None:
            y = y * self.prev
        return self.h(y * 4)
""",
    "more operations": """
    def forward(self, x):
        y = self.c(x)
        if self.flag:
            y = self.k(y * 2) * 3
        else:
            y = y * 4
        return self.h(y)
""",
    "a statement": """
    def forward(self, x):
        y = self.c(x)
        if self.flag:
            y.mul_(2)
        else:
            y = y * 4
        return self.h(y)
""",
    "a loop": """
    def forward(self, x):
        y = self.c(x)
        if self.flag:
            for _ in range(2):
                y = y * 2
            return y
        return self.h(y * 4)
""",
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_a_branch_that_may_compute_another_value_is_noted(nets, name):
    stock, _ = nets(UNCLEAR[name])
    model = inject(copy.deepcopy(stock), recipe("mul"), example_inputs=image())
    assert "another branch of the forward" in injected(model)[0].note
    for each in (stock, model):
        each.b.flag = True
    assert same_bits(run(model, image()), run(stock, image()))


ELSEWHERE = ("an early return", "the reader gets another value", "nothing in another branch",
             "another map in another branch", "a loop in another branch")  # fmt: skip
"""Where the forward does not use the value after the change."""


@pytest.mark.parametrize("name", CASES)
def test_the_site_follows_its_value(nets, name):
    site, change, side, text = CASES[name]
    stock, oracle = nets(text)
    model = inject(copy.deepcopy(stock), recipe(site), example_inputs=image())
    assert [insertion.path for insertion in injected(model)] == [f"b.{site}"]
    for each in (stock, oracle, model):
        change(each)
    for seed in (1, 2):
        plain, expected, found = (run(each, image(side, seed=seed)) for each in (stock, oracle, model))
        if name not in ELSEWHERE:
            assert distance(expected, plain) > 1e-4
        assert distance(found, expected) < 1e-8
    eject(model)
    for each in (stock, model):
        each.b.prev, each.b.kept = None, []
    assert same_bits(run(model, image(side)), run(stock, image(side)))


@pytest.mark.parametrize("name", ["another output", "another reader behind a flag", "in place", "private names"])
def test_bypassed_it_is_the_stock_forward(nets, name):
    site, change, side, text = CASES[name]
    stock, _ = nets(text)
    model = inject(copy.deepcopy(stock), recipe(site), example_inputs=image())
    for each in (stock, model):
        change(each)
    with bypass(model):
        assert same_bits(run(model, image(side)), run(stock, image(side)))


PARTS = {
    "a method of the block": """
    def forward(self, x):
        return self.h(self.inner(x))

    def inner(self, x):
        y = <<self.c(x) + x>>
        return y
""",
    "with a reader behind it": """
    def forward(self, x):
        return self.h(self.inner(x)) + x

    def inner(self, x):
        return self.k(x) + <<self.c(x) + x>>.relu()
""",
    "that another method runs too": """
    def forward(self, x):
        return self.h(self.inner(x)) * 2

    def inner(self, x):
        y = <<self.c(x) + x>>
        return self.k(y)

    def other(self, x):
        return self.k(x)
""",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_the_forward_is_attended_too(nets, name):
    """`forward_features` and its kin can be called by themselves."""
    stock, oracle = nets(PARTS[name])
    model = inject(copy.deepcopy(stock), recipe("add[1]"), example_inputs=image())
    parts = [lambda x, net=net: net.b.inner(x) for net in (stock, oracle, model)]
    plain, expected, found = (part(image()) for part in parts)
    assert distance(expected, plain) > 1e-4
    assert distance(found, expected) < 1e-8
    assert distance(run(model, image()), run(oracle, image())) < 1e-8


LOOKS_AT_GRADIENTS = {
    "register_hook": """
    def forward(self, x):
        y = <<self.c(x) + x>>
        if y.requires_grad:
            y.register_hook(self.kept.append)
        return self.h(y)
""",
    "retain_grad": """
    def forward(self, x):
        self.y = <<self.c(x) + x>>
        if self.y.requires_grad:
            self.y.retain_grad()
        return self.h(self.y)
""",
    "behind a flag": """
    def forward(self, x):
        y = <<self.c(x) + x>>
        if self.flag and y.requires_grad:
            y.register_hook(self.kept.append)
        return self.h(y)
""",
}


@pytest.mark.parametrize("name", LOOKS_AT_GRADIENTS)
def test_gradients_that_the_forward_asks_for(nets, name):
    stock, oracle = nets(LOOKS_AT_GRADIENTS[name])
    model = inject(copy.deepcopy(stock), recipe("add"), example_inputs=image())
    seen = []
    for each in (stock, oracle, model):
        flag(each)
        sum(out.square().sum() for out in each(image())).backward()
        seen.append(each.b.kept[0] if each.b.kept else each.b.y.grad)
    assert distance(seen[1], seen[0]) > 1e-4
    assert distance(seen[2], seen[1]) < 1e-8


def test_an_entry_of_an_operation_is_refused_with_a_true_reason(nets):
    stock, _ = nets("""
    def forward(self, x):
        a, b = torch.cat([self.c(x), x], 1).chunk(2, 1)
        return self.h(a) + a * b
""")
    with pytest.raises(NoMatchError, match=r"b\.chunk:0: .*one of several tensors"):
        inject(stock, recipe("chunk:0"), example_inputs=image())


@pytest.mark.parametrize(("end", "edit"), [("self.h(y)", Input("b.h", 0)), ("y", Output("b"))])
def test_without_a_source_a_hook_attends_it_and_the_plan_says_so(end, edit):
    names = {"__name__": "typed_in"}
    text = f"    def forward(self, x):\n        y = self.c(x) + x\n        return {end}\n"
    exec(HEAD.format(name="Block") + text, names)  # noqa: S102 - as in an interpreter
    stock = Net(names["Block"]).double().eval()
    (only,) = plan(stock, recipe("add"), example_inputs=image()).insertions
    assert (only.edit, "this may depend on the input" in only.note) == (edit, True)
    model = inject(copy.deepcopy(stock), recipe("add"), example_inputs=image())
    y = attend(stock.b.c(stock.stem(image())) + stock.stem(image()))
    assert distance(run(model, image())[0], [stock.tail(y if end == "y" else stock.b.h(y))]) < 1e-8


class ListsChildren(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


@pytest.mark.parametrize(
    ("modules", "rule", "edit", "is_always"),
    [
        ((ListsChildren(), nn.ReLU()), {"path": "0", "after": "output"}, Input("1", 0), True),
        ((nn.ReLU(), nn.Sigmoid()), {"path": "1", "before": "input"}, Input("1", 0), True),
        ((nn.ReLU(), nn.Sequential(nn.ReLU())), {"path": "1", "before": "input"}, Input("1.0", 0), True),
        ((nn.ReLU(), ListsChildren()), {"path": "1", "before": "input"}, Input("1.a", 0), False),
    ],
)
def test_the_plan_says_where_a_hook_may_miss_the_value(modules, rule, edit, is_always):
    stock = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(*modules))
    rule = {**rule, "path": f"1.{rule['path']}"}
    (only,) = plan(stock, {"rules": [rule]}, example_inputs=torch.rand(1, 4, 8, 8)).insertions
    assert (only.edit, only.note == "") == (replace(edit, module=f"1.{edit.module}"), is_always)


ENDS = {
    "the block's result": ("y", Output("b")),
    "what one child reads": ("self.h(y)", Rewritten("b", "add")),
    "read twice": ("self.h(y) * y", Rewritten("b", "add")),
    "read by a child that may be passed by": ("y if self.flag else self.h(y)", Rewritten("b", "add")),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_hook_is_used_where_the_source_shows_that_the_value_is_always_returned(nets, name):
    end, edit = ENDS[name]
    stock, _ = nets(f"    def forward(self, x):\n        y = self.c(x) + x\n        return {end}\n")
    (only,) = plan(stock, recipe("add"), example_inputs=image()).insertions
    assert (only.edit, only.note) == (edit, "")


@pytest.mark.parametrize("binding", ["match (self.flag, x):\n case (True, y): 0", "if self.flag:\n import this as y"])
def test_a_variable_that_may_be_bound_again_is_not_always_returned(nets, binding):
    lines = ["y = self.c(x) + x", *binding.split("\n"), "return y"]
    stock, _ = nets("    def forward(self, x):\n" + "".join(f"        {line}\n" for line in lines))
    (only,) = plan(stock, recipe("add"), example_inputs=image()).insertions
    assert only.edit == Rewritten("b", "add")


METHODS = {
    "two names": ("    act_b = act\n", "self.act_b(y) if self.flag else self.act(y)", "two names"),
    "through the class": ("", "Block.act(self, y) if self.flag else self.act(y)", "self.act"),
    "kept in an attribute": ("", "self.kept_method(y) if self.flag else self.act(y)", "self.act"),
    "of a name that is computed": ("", 'getattr(self, "a" + "ct")(y)', "not always called"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_not_always_found_on_the_instance_is_not_rewritten(nets, name):
    alias, call, reason = METHODS[name]
    act = "    def act(self, y):\n        z = y * 2.0\n        return z + z\n"
    stock, _ = nets(f"{act}{alias}    def forward(self, x):\n        y = self.c(x)\n        return self.h({call})\n")
    if "kept_method" in call:
        stock.b.kept_method = stock.b.act
    with pytest.raises(NoMatchError, match=rf"b\.mul: .*{reason}"):
        plan(stock, recipe("mul"), example_inputs=image())


def around(method):
    return lambda y: method(y) * 1.0


class Keeper:
    def __init__(self, method):
        self.method = method


KEEPERS = {
    "a cache": functools.lru_cache,
    "its function": lambda method: method.__func__,
    "an object": Keeper,
    "a weak reference": weakref.WeakMethod,
    "a default": lambda method: lambda y, act=method: act(y),
    "a keyword of a partial": lambda method: functools.partial(map, func=method),
    "a function around it": around,
    "a partial of a function around it": lambda method: functools.partial(around(method)),
    "lists in a dict": lambda method: {"acts": [[method]]},
}


@pytest.mark.parametrize("keeper", [*KEEPERS, "the parent", "a list of the parent"])
def test_a_method_that_something_refers_to_is_not_rewritten(nets, keeper):
    """A flag may call it: the bound method would run without SimAM."""
    stock, _ = nets("""
    def act(self, y):
        z = y * 2.0
        return z + z

    def forward(self, x):
        return self.h(self.act(self.c(x)))
""")
    if keeper == "the parent":
        stock.act = stock.b.act
    elif keeper == "a list of the parent":
        stock.acts = [stock.b.act]
    else:
        stock.b.kept_method = KEEPERS[keeper](stock.b.act)
    with pytest.raises(NoMatchError, match=r"b\.mul: .*not always called as self\.act"):
        plan(stock, recipe("mul"), example_inputs=image())


@pytest.mark.parametrize("line", ["TABLE = {True: act}", "again = property(act)", "again = partialmethod(act)"])
def test_a_method_that_the_class_refers_to_is_not_rewritten(nets, line):
    stock, _ = nets(f"""
    from functools import partialmethod

    def act(self, y=1.0):
        z = y * 2.0
        return z + z

    {line}

    def forward(self, x):
        return self.h(self.act(self.c(x)))
""")
    with pytest.raises(NoMatchError, match=r"b\.mul: .*not always called as self\.act"):
        plan(stock, recipe("mul"), example_inputs=image())


@pytest.mark.parametrize(("decorator", "is_refused"), [("classmethod", True), ("staticmethod", False)])
def test_a_method_that_the_class_calls(nets, decorator, is_refused):
    stock, _ = nets(f"""
    def act(self, y):
        z = y * 2.0
        return z + z

    @{decorator}
    def other({"own, " * is_refused}net, y):
        return {"own.act(net, y)" if is_refused else "net.act(y)"}

    def forward(self, x):
        y = self.c(x)
        return self.h(self.other(self, y) if self.flag else self.act(y))
""")
    if is_refused:
        with pytest.raises(NoMatchError, match=r"b\.mul: .*not always called as self\.act"):
            plan(stock, recipe("mul"), example_inputs=image())
    else:
        model = inject(copy.deepcopy(stock), recipe("mul"), example_inputs=image())
        before = run(model, image())
        flag(model)
        assert same_bits(run(model, image()), before)


def test_a_private_method_that_is_called_through_the_class_is_not_rewritten(nets):
    act = "    def __act(self, y):\n        z = y * 2.0\n        return z + z\n"
    for call, is_rewritten in (
        ("Block.__act(self, y) if self.flag else self.__act(y)", False),
        ("self.__act(y)", True),
    ):
        stock, _ = nets(f"{act}    def forward(self, x):\n        y = self.c(x)\n        return self.h({call})\n")
        if is_rewritten:
            (only,) = plan(stock, recipe("mul"), example_inputs=image()).insertions
            assert only.edit == Rewritten("b", "mul")
        else:
            with pytest.raises(NoMatchError, match=r"b\.mul: .*which is not always called as self\._Block__act"):
                plan(stock, recipe("mul"), example_inputs=image())


def test_a_rewritten_method_has_the_attributes_of_a_method(nets):
    text = "    def act(self, y):\n        z = y * 2.0\n        return z + z\n    def forward(self, x):\n        "
    stock, oracle = nets(text.replace("y * 2.0", "<<y * 2.0>>") + "return self.act.__func__(self, self.c(x))\n")
    model = inject(copy.deepcopy(stock), recipe("mul"), example_inputs=image())
    assert (model.b.act.__name__, model.b.act.__self__) == ("act", model.b)
    assert distance(run(model, image())[0], run(oracle, image())[0]) < 1e-8


def test_a_file_that_was_changed_after_its_import_is_not_compiled(nets):
    text = (
        "    def forward(self, x):\n        y = self.c(x) + 1.0\n        return y + y if self.flag else y - 2.0 * y\n"
    )
    stock, _ = nets(text)
    file = Path(type(stock.b).forward.__code__.co_filename)
    file.write_text(file.read_text().replace("y + y", "y * y"))
    with pytest.raises(NoMatchError, match=r"b\.add: .*source .*changed"):
        plan(stock, recipe("add[1]"), example_inputs=image())


@pytest.mark.parametrize("name", ["output", "input"])
def test_a_method_may_have_the_name_of_an_edit(nets, name):
    text = (
        "    def NAME(self, y):\n        z = <<y * 2.0>>\n        return z + z * self.h(z)\n    def forward(self, x):\n"
    )
    text += "        #@ return attend(self.NAME(attend(x)))\n        return self.NAME(x)\n"
    stock, oracle = nets(text.replace("NAME", name))
    sites = [{"after": "mul[1]"}, {"after": "output"}, {"before": "input"}]
    rules = {"e_lambda": E_LAMBDA, "rules": [{"block": "Block", **site} for site in sites]}
    model = inject(copy.deepcopy(stock), rules, example_inputs=image())
    assert len(injected(model)) == 3
    assert distance(run(model, image())[0], run(oracle, image())[0]) < 1e-8
    assert distance(run(model, image())[0], run(stock, image())[0]) > 1e-3


class OneReaderOfItsInput(nn.Module):
    """A flag adds a reader of what the block is given, and of what its Sequential returns."""

    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()
        self.c = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), self.act)
        self.h, self.flag, self.kept, self.attend = nn.Conv2d(4, 4, 3, padding=1), False, [], {}

    def forward(self, x):
        y = self.mark("after c", self.c(self.mark("before c", x)))
        z = self.act(self.h(self.mark("before h", y)))
        return z + x + y if self.flag else z

    def mark(self, place, x):
        return self.attend.get(place, nn.Identity())(x)


@pytest.mark.parametrize(
    ("place", "edit"),
    [("before c", Input("b.c.0", 0)), ("before h", Input("b.h", 0)), ("after c", Rewritten("b", "c"))],
)
def test_a_reader_that_a_flag_adds(place, edit):
    stock = Net(OneReaderOfItsInput).double().eval()
    oracle = copy.deepcopy(stock)
    oracle.b.attend[place] = attend
    position, name = place.split()
    rules = [{"block": "OneReaderOfItsInput", position: name}]
    model = inject(copy.deepcopy(stock), {"e_lambda": E_LAMBDA, "rules": rules}, example_inputs=image())
    assert [(one.edit, one.note) for one in injected(model)] == [(edit, "")]
    for change in (nothing, flag):
        for each in (stock, oracle, model):
            change(each)
        plain, expected, found = (run(each, image()) for each in (stock, oracle, model))
        assert distance(expected, plain) > 1e-4
        assert distance(found, expected) < 1e-8


class OwnForward(nn.Sequential):
    def forward(self, x):
        y = self[0](x) * 2.0
        return self[1](y)


def test_a_sequential_with_a_forward_of_its_own_has_a_note():
    net = Net(lambda: OwnForward(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))).double()
    (only,) = plan(net, {"rules": [{"block": "OwnForward", "after": "mul"}]}, example_inputs=image()).insertions
    assert (only.edit, "this may depend on the input" in only.note) == (Input("b.1", 0), True)
