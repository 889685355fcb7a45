"""Random networks that ask Python many things, and changes that are made to them after injection. Data, so that
hypothesis can shrink and print them.

Every map is N x C x H x W, and no module is called twice, so that a forward hook stands for every site.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from hypothesis import strategies as st
from torch import nn

CHANNELS = 4
SETTINGS = {"power": 1.0}
ACTS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Unit(nn.Module):
    """Two convolutions, and whatever is asked for: a mode, a gain, a skip, a list of more layers, a dictionary."""

    def __init__(self, kind, act):
        super().__init__()
        self.one, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
        self.two, self.act = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), ACTS[act]()
        self.more, self.choices = nn.ModuleList(), {"left": self.left, "right": self.right}
        self.kind, self.mode, self.gain, self.skip, self.seen = kind, "left", 1.0, True, []

    def left(self, x):
        return self.two(self.act(self.norm(self.one(x))))

    def right(self, x):
        return self.two(self.norm(self.one(x))) * 0.5

    def forward(self, x):
        y = getattr(self, f"as_{self.kind}")(x)
        for layer in self.more:
            y = layer(y)
        return y if self.gain == 1 else y * self.gain

    def as_plain(self, x):
        return self.left(x)

    def as_skipping(self, x):
        y = self.left(x)
        return x + y if self.skip else y

    def as_choosing(self, x):
        return self.choices[self.mode](x)

    def as_sized(self, x):
        y = self.act(self.one(x))
        if x.shape[-1] > 8:
            y = F.interpolate(F.avg_pool2d(y, 2), size=x.shape[2:])
        return self.two(y) * {1: 1.0, 2: 0.5}.get(len(x), 0.25)

    def as_measured(self, x):
        y = self.one(x)
        if y.abs().max() > 3:
            y = y / y.abs().max()
        return self.two(self.norm(y))

    def as_collecting(self, x):
        y = self.one(x)
        self.seen.append(y.mean().item())
        return self.two(self.act(y)) - self.seen[-1]

    def as_global(self, x):
        return self.two(self.act(self.one(x)).abs() ** SETTINGS["power"])

    def as_training(self, x):
        y = F.dropout(self.one(x), 0.3, self.training)
        return self.two(y) + x if self.training else self.two(y)

    def as_guarded(self, x):
        try:
            if not torch.isfinite(x).all() or x.shape[-1] > 10:
                raise ValueError
            return self.two(self.act(self.one(x)))
        except ValueError:
            return self.two(self.one(x)).tanh()
        finally:
            self.last = tuple(x.shape)


KINDS = tuple(name.removeprefix("as_") for name in vars(Unit) if name.startswith("as_"))


class Chain(nn.Module):
    def __init__(self, design):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.units = nn.ModuleList(Unit(kind, act) for kind, act in design.units)
        self.head, self.maps = nn.Conv2d(CHANNELS, 2, 1), design.maps

    def forward(self, x):
        x, maps = self.stem(x), []
        for unit in self.units:
            x = unit(x)
            maps.append(x)
        return (self.head(x), maps) if self.maps else self.head(x)


@dataclass(frozen=True)
class Design:
    units: tuple
    maps: bool

    def build(self):
        torch.manual_seed(0)
        return Chain(self).double().eval()


@dataclass(frozen=True)
class Change:
    """One thing done to the stock network and to the injected one alike."""

    kind: str
    unit: int
    value: object

    def apply(self, model):
        """False: it cannot be done here, since it would take an attended module away."""
        unit = model.units[self.unit % len(model.units)]
        if self.kind == "act" and "simam" in dict(unit.act.named_children()):
            return False
        special = getattr(self, f"_{self.kind}", None)
        if special is None:
            setattr(unit, self.kind, self.value)
        else:
            special(model, unit)
        return True

    def _act(self, model, unit):
        unit.act = ACTS[self.value]()

    def _append(self, model, unit):
        unit.more.append(ACTS[self.value]())

    def _clear(self, model, unit):
        unit.more = nn.ModuleList()

    def _training(self, model, unit):
        model.train(self.value)

    def _part(self, model, unit):
        unit.train(self.value)

    def _weights(self, model, unit):
        with torch.no_grad():
            unit.one.weight.mul_(self.value)

    def _frozen(self, model, unit):
        unit.requires_grad_(not self.value)

    def _global(self, model, unit):
        SETTINGS["power"] = self.value

    def _method(self, model, unit):
        unit.choices = dict(zip(unit.choices, reversed([*unit.choices.values()]), strict=True))


def _changes(kind, *values):
    return st.builds(Change, st.just(kind), st.integers(0, 3), st.sampled_from(values))


changes = st.one_of(
    _changes("mode", "left", "right"), _changes("gain", 1.0, 0.5, 3), _changes("skip", True, False),
    _changes("kind", *KINDS), _changes("act", *ACTS), _changes("append", *ACTS), _changes("clear", None),
    _changes("training", True, False), _changes("part", True, False), _changes("weights", 0.5, 4.0),
    _changes("frozen", True, False), _changes("global", 1.0, 2.0), _changes("method", None),
)  # fmt: skip
designs = st.builds(
    Design,
    units=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(sorted(ACTS))), min_size=1, max_size=3).map(tuple),
    maps=st.booleans(),
)
shapes = st.tuples(st.integers(1, 3), st.integers(6, 13), st.integers(6, 13))
rules = st.sampled_from(
    (
        {"path": "*", "after": {"op": "conv"}},
        {"path": "units.*", "after": {"op": "conv"}, "pick": {"every": 2}},
        {"block": "Unit", "after": "one"},
        {"block": "Unit", "after": "two"},
        {"block": "Unit", "after": "{one,norm}"},
        {"block": "Unit", "after": "output"},
        {"pattern": "conv2d"},
        {"path": "{stem,units.0.two}", "after": "output"},
    )
)
