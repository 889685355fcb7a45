"""Fault B: the first dimension must be that of the samples, at planning and at every forward; else it is an error."""

import copy

import pytest
import torch
from torch import nn

from simam_inject import InjectError, inject, plan
from simam_inject.api import survey
from tests.engine.axes import after, assert_like_hooks, rows
from tests.engine.blocks import build, run
from tests.engine.targets import image
from tests.oracle import E_LAMBDA, assert_right, distance, hooked

# B3: attention never mixes samples


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

    def forward(self, x):
        return self.layer(self.conv(x).flatten(2).permute(2, 0, 1)).mean(0)


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x):
        return self.layer(self.conv(x).flatten(2).permute(2, 0, 1)).mean(0)


class HeightFirst(TimeFirst):
    """(H, W, N, C)."""

    def forward(self, x):
        return self.layer(self.conv(x).permute(2, 3, 0, 1)).mean((0, 1))


class ChannelsFirst(nn.Module):
    """(C, N, H, W)."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Tanh(), nn.Identity())

    def forward(self, x):
        return self.layer(self.conv(x).transpose(0, 1)).mean((2, 3)).T


class Recurrent(nn.Module):
    """(L, N, C) from an RNN without batch_first."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(3, 8, 3, padding=1), nn.GRU(8, 8)
        self.layer = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x):
        return self.layer(self.rnn(self.conv(x).mean(2).permute(2, 0, 1))[0])[-1]


class Joined(nn.Module):
    """The batch as one long row of pixels."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Tanh(), nn.Conv1d(8, 8, 1))

    def forward(self, x):
        y = self.conv(x)
        row = y.transpose(0, 1).reshape(1, 8, -1)
        return self.layer(row).reshape(8, len(x), *y.shape[2:]).transpose(0, 1)


@pytest.mark.parametrize("factory", [SequenceFirst, TimeFirst, HeightFirst, ChannelsFirst, Recurrent, Joined])
def test_where_the_batch_is_not_first_the_site_is_skipped(factory):
    stock = build(factory)
    recipe = {
        "e_lambda": E_LAMBDA,
        "rules": [{"path": "layer", "after": "output", "optional": True}, {"path": "conv", "after": "output"}],
    }
    planned = plan(stock, recipe, example_inputs=image(2, 3, 6, 10))
    assert [insertion.path for insertion in planned.insertions] == ["conv"]
    reasons = [skip.reason for skip in planned.skips if skip.path == "layer"]
    assert reasons
    assert "batch" in reasons[0] or "sample" in reasons[0]
    model = planned.apply()
    one, two = image(1, 3, 6, 10, seed=1), image(1, 3, 6, 10, seed=2)
    together = run(model, torch.cat([one, two]))
    assert distance(together[:1], run(model, one)) < 1e-8  # the second sample does not reach the first


@pytest.mark.parametrize("factory", [SequenceFirst, TimeFirst, HeightFirst])
def test_a_recipe_that_takes_only_such_a_site_is_an_error(factory):
    with pytest.raises(InjectError, match=r"batch|sample"):
        inject(build(factory), after("layer"), example_inputs=image(2, 3, 6, 10))


LAYER_AND_CONV = {"rules": [after("layer")["rules"][0] | {"optional": True}, *after("conv")["rules"]]}


def test_a_batch_of_one_does_not_hide_it():
    planned = plan(build(SequenceFirst), LAYER_AND_CONV, example_inputs=image(1, 3, 6, 10))
    assert [insertion.path for insertion in planned.insertions] == ["conv"]


class OfNoSample(nn.Module):
    """A position table that passes through layers: no feature map of any sample."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 6, 10))
        self.layer, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x) + self.layer(self.table)


def test_what_does_not_depend_on_the_input_is_skipped():
    planned = plan(build(OfNoSample), LAYER_AND_CONV, example_inputs=image(2, 3, 6, 10))
    assert [insertion.path for insertion in planned.insertions] == ["conv"]


# B4: inputs without the batch


class One(nn.Module):
    def __init__(self, dims):
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.a, self.b = kind(3, 6, 3, padding=1), kind(6, 6, 3, padding=1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class OneInside(One):
    """Takes the batch away itself, one sample at a time, later on."""

    def forward(self, x):
        y = self.a(x)
        return self.b(y) if y.dim() == 4 else self.b(y.relu())


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (lambda: One(1), (2, 3, 16)),
        (lambda: One(2), (2, 3, 8, 10)),
        (lambda: One(3), (2, 3, 6, 4, 8)),
        (lambda: OneInside(2), (2, 3, 8, 10)),
    ],
    ids=["1d", "2d", "3d", "branch"],
)
@pytest.mark.parametrize("place", ["a", "b"])
def test_an_input_without_its_batch_raises_or_is_one_sample(factory, shape, place):
    stock = build(factory)
    x = image(*shape)
    model = inject(copy.deepcopy(stock), after(place), example_inputs=x)
    try:
        found = run(model, x[0])
    except InjectError as error:
        message = str(error)
    else:
        with hooked(stock, [place]):
            expected = run(stock, x[:1])[0]
        assert_right(found, expected, run(stock, x[0]))
        return
    assert place in message or "batch" in message


# Frames and views: N, T, C, H, W


class Frames(nn.Module):
    def __init__(self, pool=None):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.table = None if pool is None else nn.Parameter(torch.randn(1, 6, 8, 8))

    def forward(self, x):
        n, t = x.shape[:2]
        y = self.a(x.flatten(0, 1)).relu()
        y = y if self.table is None else y + self.table
        return self.b(y).unflatten(0, (n, t)).mean(1)


class Folded(Frames):
    """The frames by `reshape`, their mean by `view`."""

    def forward(self, x):
        y = self.b(self.a(x.reshape(-1, *x.shape[2:])).relu())
        return y.view(*x.shape[:2], *y.shape[1:]).amax(1)


class Siamese(Frames):
    def forward(self, x, y):
        both = self.b(self.a(torch.cat([x, y])).relu())
        return both[: len(x)] - both[len(x) :]


@pytest.mark.parametrize(
    ("factory", "shapes", "others"),
    [
        (Frames, [(2, 3, 3, 8, 8)], [(1, 4, 3, 8, 12)]),
        (Folded, [(2, 3, 3, 8, 8)], [(3, 2, 3, 12, 8)]),
        (Siamese, [(2, 3, 8, 8)] * 2, [(3, 3, 12, 8)] * 2),
    ],
)
@pytest.mark.parametrize("place", ["a", "b"])
def test_maps_of_frames_and_views_are_feature_maps(factory, shapes, others, place):
    inputs, other = ([image(*shape, seed=seed) for seed, shape in enumerate(each)] for each in (shapes, others))
    assert_like_hooks(factory, {place: 1}, inputs, other)


class OneByOne(Frames):
    def forward(self, x):
        return torch.cat([self.b(self.a(sample).relu()) for sample in x.split(1)])


class Stacked(OneByOne):
    def forward(self, x):
        return torch.stack([super(Stacked, self).forward(sample[None])[0] for sample in x])


@pytest.mark.parametrize("factory", [OneByOne, Stacked])
@pytest.mark.parametrize("batch", [1, 2])
def test_samples_that_run_one_by_one_are_feature_maps(factory, batch):
    inputs, other = [image(batch, 3, 8, 8)], [image(3, 3, 8, 12)]
    assert_like_hooks(factory, {"a": 1, "b": 1}, inputs, other, rules=[{"pattern": "conv2d"}])


def test_frames_of_one_size_are_skipped_because_windows_look_the_same():
    with pytest.raises(InjectError, match=r"grows by 3 .*windows, groups or frames"):
        plan(build(lambda: Frames(pool=1)), after("a"), example_inputs=image(2, 3, 3, 8, 8))


# The layout at a site changes later


class Layouts(nn.Module):
    """Channels second, or last where `last` says so."""

    def __init__(self, last=False):
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 1)
        self.last = last

    def forward(self, x):
        y = self.a(x)
        last = self.last if isinstance(self.last, bool) else x.shape[-1] == self.last
        return self.b(self.act(rows(y)).permute(0, 3, 1, 2)) if last else self.b(self.act(y))


@pytest.mark.parametrize(
    ("before", "later", "side"),
    [(False, True, 8), (True, False, 8), (12, 12, 12)],
    ids=["to last", "to second", "by size"],
)
def test_another_layout_at_a_site_raises(before, later, side):
    model = inject(build(lambda: Layouts(before)), after("act"), example_inputs=image(2, 4, 8, 8))
    model.last = later
    with pytest.raises(InjectError, match=r"SimAM at act .*6 channels"):
        run(model, image(2, 4, side, side))


class Flattens(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Conv2d(4, 6, 3, padding=1), nn.GELU()

    def forward(self, x):
        return self.act(self.a(x).flatten(2)).sum(-1)


class Sums(Flattens):
    def forward(self, x):
        return self.act(self.a(x).sum(-1)).sum(-1)


@pytest.mark.parametrize("factory", [Flattens, Sums])
def test_one_sample_without_its_batch_at_a_site_of_three_dimensions_raises(factory):
    stock = build(factory)
    model = inject(copy.deepcopy(stock), after("act"), example_inputs=image(2, 4, 8, 8))
    one = image(4, 8, 8)
    run(stock, one)
    with pytest.raises(InjectError, match="act"):
        run(model, one)


class Parts(nn.Module):
    """Its second convolution sees the first two samples only."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.table = nn.Conv2d(4, 4, 3, padding=1), nn.Sigmoid(), nn.Parameter(torch.rand(1, 4, 8, 8))
        self.b = nn.ReLU()

    def forward(self, x):
        first, *others = (self.a(x) * self.act(self.table)).split(2)
        return torch.cat([self.b(first), *others])


class Experts(Parts):
    """Each third sample goes to its second part."""

    def forward(self, x):
        y, kind = self.a(x) * self.act(self.table), torch.arange(len(x)) % 3
        out = torch.zeros_like(y)
        out[kind == 0] = self.b(y[kind == 0])
        return out


@pytest.mark.parametrize("factory", [Parts, Experts])
def test_why_a_part_of_the_batch_is_not_attended(factory):
    sites = survey(build(factory), example_inputs=image(2, 4, 8, 8)).site_by_path
    assert "does not grow with the first dimension of the inputs" in sites["b"].obstacle
    assert "does not grow with the first dimension of the inputs" in sites["act"].obstacle
    assert sites["a"].obstacle is None


class Boards(nn.Module):
    """It makes maps of one size of whatever it is given: a larger image is more samples."""

    def __init__(self, side, channels, head):
        super().__init__()
        self.shape = channels, side, side
        self.conv, self.layer = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = head

    def forward(self, x):
        return self.head(torch.relu(self.layer(self.conv(x.view(-1, *self.shape)))))


class Positions(nn.Module):
    """A network of any size, whose result has a row for each position; its windows are in the first dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.layer(self.conv(x)))
        _, c, h, w = x.shape
        windows = x.unflatten(3, (w // 4, 4)).unflatten(2, (h // 4, 4)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        return {"rows": windows.softmax(1).reshape(-1, c)}


def test_rows_of_positions_are_no_samples():
    found = plan(build(Positions), LAYER_AND_CONV, example_inputs=image(2, 3, 8, 12)).insertions
    assert [(one.path, one.axes_measured) for one in found] == [("conv", True), ("layer", True)]


@pytest.mark.parametrize("side", [6, 8, 15, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("head", [nn.Flatten, lambda: nn.AdaptiveAvgPool2d(1)])
def test_a_view_that_makes_samples_of_a_larger_image(side, channels, head):
    shape = (side, side) if channels == 1 else (channels, side, side)
    places = {"conv": 1, "layer": 1}
    assert_like_hooks(lambda: Boards(side, channels, head()), places, [image(2, *shape)], [image(3, *shape)])
