"""Small modules whose forward asks Python something each time, one class per way of asking. In each the convolutions
`a` and `b` are attended.

`CASES`: name -> (factory, how to change it, input afterwards). The change is applied to the stock twin as well.
"""

import contextlib
import enum
import functools
import math
import os
import random
from collections import namedtuple
from contextvars import ContextVar
from types import SimpleNamespace

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.engine.blocks import Block, conv


def image(side=8, batch=2, channels=4, scale=1.0, seed=1):
    noise = torch.Generator().manual_seed(seed)
    return torch.randn((batch, channels, side, side), generator=noise, dtype=torch.float64) * scale


# A1: the size of the input


class SizeInDict(Block):
    def forward(self, x):
        return self.b(self.a(x)) * {16: 0.5}.get(x.shape[-1], 1.0)


class SizeInTernary(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if x.shape[-1] < 12 else y + self.b(x)


class SizeInIndex(Block):
    def forward(self, x):
        return self.b(self.a(x)) * [1.0, 0.5, 0.25][x.shape[-1] // 8 - 1]


class SizeInString(Block):
    def forward(self, x):
        return self.b(self.a(x)) - (1.0 if "16" in f"{tuple(x.shape)}" else 0.0)


class SizeInMatch(Block):
    def forward(self, x):
        match x.shape:
            case (_, _, 8, 8):
                return self.b(self.a(x))
            case (_, channels, height, _):
                return self.b(self.a(x)) / (channels * height)


class SizeInLoop(Block):
    def forward(self, x):
        y = self.a(x)
        for _ in range(int(math.log2(x.shape[-1])) - 3):
            y = F.avg_pool2d(y, 2)
        return self.b(y)


class BatchInDict(Block):
    def forward(self, x):
        return self.b(self.a(x)) * {2: 1.0, 3: 2.0}[len(x)]


# A2: an attribute chooses what runs


class TaskInDict(Block):
    def __init__(self):
        super().__init__()
        self.c, self.task = conv(), 0

    def forward(self, x):
        return {0: self.b, 1: self.c}.get(self.task, self.b)(self.a(x))


class TaskInName(TaskInDict):
    def forward(self, x):
        return getattr(self, "bc"[self.task])(self.a(x))


class TaskInModuleDict(Block):
    def __init__(self):
        super().__init__()
        self.heads, self.task = nn.ModuleDict({"0": conv(), "1": nn.Sequential(conv(), nn.ReLU())}), 0

    def forward(self, x):
        return self.heads[str(self.task)](self.a(x))


class TaskInMethod(TaskInDict):
    def first(self, x):
        return self.b(x)

    def second(self, x):
        return self.c(x).tanh()

    def forward(self, x):
        return (self.second if self.task else self.first)(self.a(x))


class TaskInProperty(TaskInDict):
    @property
    def head(self):
        return [self.b, self.c][self.task]

    def forward(self, x):
        return self.head(self.a(x))


class Mode(enum.Enum):
    SUM = 0
    PRODUCT = 1


class TaskInEnum(TaskInDict):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) + y if Mode(self.task) is Mode.SUM else self.b(y) * y


# A3: the data decide


class HotInTry(Block):
    def forward(self, x):
        y = self.a(x)
        try:
            hot = bool(y.abs().max() > 100)
        except Exception:
            hot = False
        return self.b(y / 10 if hot else y)


class HotInIf(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y / 10) if y.abs().max() > 100 else self.b(y)


class HotInWhile(Block):
    def forward(self, x):
        y = self.a(x)
        while float(y.abs().max()) > 100:
            y = y / 2
        return self.b(y)


class HotInSuppress(Block):
    def forward(self, x):
        y = self.a(x)
        with contextlib.suppress(ValueError):
            if y.abs().max().item() > 100:
                raise ValueError
            return self.b(y)
        return self.b(y).sigmoid()


class HotInIndex(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) * (1.0, 0.1)[int((y.abs() > 100).any())]


# A4: as many maps as the size allows


class Pyramid(nn.Module):
    def forward(self, x):
        maps = [x]
        while maps[-1].shape[-1] > 4:
            maps.append(F.avg_pool2d(maps[-1], 2))
        return maps


class PyramidSum(Block):
    def __init__(self):
        super().__init__()
        self.pyramid = Pyramid()

    def forward(self, x):
        maps = self.pyramid(self.a(x))
        return self.b(sum(F.interpolate(each, size=x.shape[2:]) for each in maps))


class NamedPyramid(Pyramid):
    def forward(self, x):
        return {f"p{level}": each for level, each in enumerate(super().forward(x))}


class PyramidDict(PyramidSum):
    def __init__(self):
        super().__init__()
        self.pyramid = NamedPyramid()

    def forward(self, x):
        y = self.a(x)
        for name, each in self.pyramid(y).items():
            y = y + F.interpolate(each, size=x.shape[2:]) * (1 + len(name))
        return self.b(y)


class PyramidTuple(PyramidSum):
    def forward(self, x):
        first, *rest = self.pyramid(self.a(x))
        return self.b(first) + sum(each.mean((2, 3), keepdim=True) for each in rest)


class Recursion(Block):
    def down(self, y):
        return y if y.shape[-1] <= 4 else y + F.interpolate(self.down(F.avg_pool2d(y, 2)), size=y.shape[2:])

    def forward(self, x):
        return self.b(self.down(self.a(x)))


# A6: numbers read from the weights


class NormOfWeight(Block):
    def forward(self, x):
        return self.b(self.a(x)) * next(self.parameters()).norm().item()


class MeanOfWeight(Block):
    def forward(self, x):
        return self.b(self.a(x)) * float(self.b.weight.abs().mean())


class LargestWeight(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y).relu() if any(p.abs().max() > 0.2 for p in self.parameters()) else self.b(y)


class BufferAsNumber(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x):
        return self.b(self.a(x)) * self.gain.item()


# A7: containers that change


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), nn.ReLU(), conv()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Keyed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a": conv(), "act": nn.ReLU(), "b": conv()})

    def forward(self, x):
        for name, layer in self.layers.items():
            x = layer(x) * len(name)
        return x


class ByChildren(Block):
    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


class PlainList(Block):
    def __init__(self):
        super().__init__()
        self.extra = [torch.tanh]

    def forward(self, x):
        y = self.a(x)
        for function in self.extra:
            y = function(y)
        return self.b(y)


def plain_sequential():
    return nn.Sequential(conv(), nn.ReLU(), conv())


# A8: anything else that Python can be asked for

SETTINGS = {"gain": 1.0}
GAIN = 1.0
CONTEXT = ContextVar("gain", default=1.0)
Options = namedtuple("Options", "gain")


def scale(x):
    return x


class GlobalDict(Block):
    def forward(self, x):
        return self.b(self.a(x)) * SETTINGS["gain"]


class GlobalNumber(Block):
    def forward(self, x):
        return self.b(self.a(x)) * GAIN


class GlobalFunction(Block):
    def forward(self, x):
        return self.b(scale(self.a(x)))


class ClassAttribute(Block):
    k = 1.0

    def forward(self, x):
        return self.b(self.a(x)) * type(self).k


class NamedTupleAttribute(Block):
    def __init__(self):
        super().__init__()
        self.options = Options(1.0)

    def forward(self, x):
        return self.b(self.a(x)) * self.options.gain


class NamespaceAttribute(NamedTupleAttribute):
    def __init__(self):
        super().__init__()
        self.options = SimpleNamespace(gain=1.0)


class TypeOfChild(Block):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.a(x)
        return self.b(self.act(y) if type(self.act) is nn.ReLU else self.act(y) * 2 + 1)


class Closure(Block):
    def __init__(self):
        super().__init__()
        gain = 1.0

        def read():
            return gain

        def write(value):
            nonlocal gain
            gain = value

        self.read, self.write = read, write

    def forward(self, x):
        return self.b(self.a(x)) * self.read()


class Environment(Block):
    def forward(self, x):
        return self.b(self.a(x)) * float(os.environ.get("SIMAM_TESTS_GAIN", "1"))


class Partial(Block):
    def __init__(self):
        super().__init__()
        self.act = functools.partial(F.leaky_relu, negative_slope=0.1)

    def forward(self, x):
        return self.b(self.act(self.a(x)))


class InContext(Block):
    def forward(self, x):
        return self.b(self.a(x)) * CONTEXT.get()


# A9 and A11: chance


class Forked(Block):
    def forward(self, x):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            noise = torch.rand_like(x)
        return self.b(self.a(x) + noise)


class GlobalNoise(Block):
    def forward(self, x):
        return self.b(self.a(x) + torch.rand_like(x))


class OwnGenerator(Block):
    def forward(self, x):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
        return self.b(self.a(x) + noise)


class PythonChance(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if random.random() < 0.5 else y - self.b(x)


class DropoutInEval(Block):
    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, training=True))


def set_attribute(name, value):
    def change(model, _monkeypatch):
        setattr(model, name, value)

    return change


def double_weights(model, _monkeypatch):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)


def set_global(name, value):
    return lambda _model, monkeypatch: monkeypatch.setattr(f"{__name__}.{name}", value)


def nothing(_model, _monkeypatch):
    pass


def _replace_child(model, _monkeypatch):
    model.act = nn.Tanh()


def _swap_order(model, _monkeypatch):
    model.layers[0], model.layers[2] = model.layers[2], model.layers[0]


CASES = {
    "A1": {
        "dict": (SizeInDict, nothing, image(16)),
        "ternary": (SizeInTernary, nothing, image(16)),
        "index": (SizeInIndex, nothing, image(16)),
        "string": (SizeInString, nothing, image(16)),
        "match": (SizeInMatch, nothing, image(16)),
        "loop": (SizeInLoop, nothing, image(32)),
        "batch": (BatchInDict, nothing, image(8, 3)),
    },
    "A2": {
        "dict": (TaskInDict, set_attribute("task", 1), image()),
        "name": (TaskInName, set_attribute("task", 1), image()),
        "module dict": (TaskInModuleDict, set_attribute("task", 1), image()),
        "method": (TaskInMethod, set_attribute("task", 1), image()),
        "property": (TaskInProperty, set_attribute("task", 1), image()),
        "enum": (TaskInEnum, set_attribute("task", 1), image()),
    },
    "A3": {
        "try": (HotInTry, nothing, image(scale=1000)),
        "if": (HotInIf, nothing, image(scale=1000)),
        "while": (HotInWhile, nothing, image(scale=1000)),
        "suppress": (HotInSuppress, nothing, image(scale=1000)),
        "index": (HotInIndex, nothing, image(scale=1000)),
    },
    "A4": {
        "list": (PyramidSum, nothing, image(32)),
        "dict": (PyramidDict, nothing, image(32)),
        "star": (PyramidTuple, nothing, image(32)),
        "recursion": (Recursion, nothing, image(32)),
    },
    "A6": {
        "norm": (NormOfWeight, double_weights, image()),
        "mean": (MeanOfWeight, double_weights, image()),
        "any": (LargestWeight, double_weights, image()),
        "buffer": (BufferAsNumber, lambda model, _: model.gain.fill_(3), image()),
    },
    "A7": {
        "add_module": (plain_sequential, lambda model, _: model.add_module("t", nn.Tanh()), image()),
        "append": (Listed, lambda model, _: model.layers.append(nn.Tanh()), image()),
        "insert": (Listed, lambda model, _: model.layers.insert(1, nn.Tanh()), image()),
        "delete": (Listed, lambda model, _: model.layers.__delitem__(1), image()),
        "swap": (Listed, _swap_order, image()),
        "item": (plain_sequential, lambda model, _: model.__setitem__(1, nn.Tanh()), image()),
        "key": (Keyed, lambda model, _: model.layers.update({"tanh": nn.Tanh()}), image()),
        "children": (ByChildren, lambda model, _: model.add_module("t", nn.Tanh()), image()),
        "plain list": (PlainList, lambda model, _: model.extra.append(torch.relu), image()),
    },
    "A8": {
        "global dict": (GlobalDict, lambda _, patch: patch.setitem(SETTINGS, "gain", 3.0), image()),
        "global number": (GlobalNumber, set_global("GAIN", 3.0), image()),
        "global function": (GlobalFunction, set_global("scale", torch.tanh), image()),
        "class": (ClassAttribute, lambda model, patch: patch.setattr(ClassAttribute, "k", 3.0), image()),
        "named tuple": (NamedTupleAttribute, set_attribute("options", Options(3.0)), image()),
        "namespace": (NamespaceAttribute, lambda model, _: setattr(model.options, "gain", 3.0), image()),
        "type": (TypeOfChild, _replace_child, image()),
        "closure": (Closure, lambda model, _: model.write(3.0), image()),
        "environment": (Environment, lambda _, patch: patch.setenv("SIMAM_TESTS_GAIN", "3"), image()),
        "partial": (Partial, set_attribute("act", torch.tanh), image()),
        "context": (InContext, lambda _, patch: CONTEXT.set(3.0), image()),
    },
    "A9": {
        "fork_rng": (Forked, nothing, image()),
        "global": (GlobalNoise, nothing, image()),
        "generator": (OwnGenerator, nothing, image()),
        "random": (PythonChance, nothing, image()),
        "dropout": (DropoutInEval, nothing, image()),
    },
}
