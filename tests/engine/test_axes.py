"""Attention runs along the axes that the values have, whatever classes are called: faults B1 to B4, by kind.

Each net names its attended module, and the channel axis of what that module returns is written by hand.
"""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject import InjectError, bypass, inject, injected, plan
from simam_inject.api import survey
from tests.oracle import E_LAMBDA, assert_attended, assert_right, distance, hooked, same_bits


def image(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(factory):
    torch.manual_seed(4)
    return factory().double().eval()


def run(model, *args):
    with torch.no_grad():
        return model(*args)


def after(path):
    return {"e_lambda": E_LAMBDA, "rules": [{"path": path, "after": "output"}]}


# B1: norms and layers that work on NCHW, under names of torch's classes that do not


class LayerNorm(nn.Module):
    """Over channels, the first axis behind the batch."""

    def __init__(self, channels=6):
        super().__init__()
        self.g = nn.Parameter(torch.linspace(0.5, 1.5, channels).view(1, -1, 1, 1))

    def forward(self, x):
        return F.normalize(x, dim=1) * self.g


class RMSNorm(LayerNorm):
    def forward(self, x):
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * self.g


class Linear(nn.Module):
    """A 1x1 convolution."""

    def __init__(self, channels=6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight)


class Embedding(nn.Module):
    """Adds one number per channel of NCHW."""

    def __init__(self, channels=6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        return x + self.weight[:, None, None]


class MultiheadAttention(nn.Module):
    """Channel attention of NCHW."""

    def __init__(self, channels=6):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * self.mix(x.mean((2, 3), keepdim=True)).sigmoid()


class Renamed(LayerNorm):
    """The same as the first; its name says nothing."""


class Conv2d(nn.Module):
    """A matrix product of the last axis."""

    def __init__(self, channels=6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels))

    def forward(self, x):
        return x @ self.weight


class NormedBlock(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), norm()

    def forward(self, x):
        return F.silu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self, blk, channels=6):
        super().__init__()
        self.stem, self.blk, self.head = nn.Conv2d(3, 6, 3, padding=1), blk, nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.head(self.blk(self.stem(x)))


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm, Linear, Embedding, MultiheadAttention, Renamed])
@pytest.mark.parametrize("place", ["blk", "blk.norm"])
def test_a_class_name_decides_nothing(norm, place):
    assert_like_hooks(lambda: Net(NormedBlock(norm)), {place: 1}, [image(2, 3, 12, 10)], [image(3, 3, 9, 14)])


# B2: the layout changes inside


class ToLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class ToFirst(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


class MoveToLast(nn.Module):
    def forward(self, x):
        return torch.movedim(x, 1, -1).contiguous()


class Transposing(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2).transpose(2, 3)


class ToTokens(nn.Module):
    """(N, C, H, W) -> (N, L, C)."""

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class FromTokens(nn.Module):
    """(N, L, C) -> (N, C, H, W) of a map twice as wide as high."""

    def forward(self, x):
        height = int((x.shape[1] // 2) ** 0.5)
        return x.transpose(1, 2).unflatten(2, (height, -1))


class ToFlat(nn.Module):
    """(N, C, H, W) -> (N, C, L)."""

    def forward(self, x):
        return x.reshape(x.shape[0], x.shape[1], -1)


class FromFlat(nn.Module):
    def forward(self, x):
        height = int((x.shape[2] // 2) ** 0.5)
        return x.view(*x.shape[:2], height, -1)


class ByLetters(nn.Module):
    """einsum instead of permute."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return torch.einsum("nchw,cd->nhwd", x, self.weight)


class LastToFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return torch.einsum("nhwc,cd->ndhw", x, self.weight)


class LastBlock(nn.Module):
    """NHWC in, NHWC out, with a skip."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        return x + self.two(F.gelu(self.one(self.norm(x))))


def sequence(*middle):
    return lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *(make() for make in middle), nn.Conv2d(6, 5, 1))


def linear():
    return nn.Linear(6, 6)


LAYOUTS = {
    "permute": (sequence(ToLast, linear, ToFirst), {"1": -1, "2": -1, "3": 1}),
    "movedim": (sequence(MoveToLast, linear, ToFirst), {"1": -1, "3": 1}),
    "transposes": (sequence(Transposing, LastBlock, ToFirst), {"1": -1, "2": -1, "3": 1}),
    "tokens": (sequence(ToTokens, linear, FromTokens), {"1": -1, "2": -1, "3": 1}),
    "flat": (sequence(ToFlat, nn.Tanh, FromFlat), {"1": 1, "2": 1, "3": 1}),
    "einsum": (sequence(ByLetters, LastBlock, LastToFirst), {"1": -1, "2": -1, "3": 1}),
    "own conv": (sequence(ToLast, Conv2d, ToFirst), {"1": -1, "2": -1, "3": 1}),
    "nested": (lambda: Net(nn.Sequential(ToLast(), LastBlock(), LastBlock(), ToFirst())), {"blk.1": -1, "blk.2": -1}),
}


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, (_, places) in LAYOUTS.items() for place in places], ids=str
)
def test_the_layout_is_that_of_the_value(name, place):
    factory, places = LAYOUTS[name]
    assert_like_hooks(factory, {place: places[place]}, [image(2, 3, 8, 16)], [image(3, 3, 4, 8)])


class Positions(nn.Module):
    """Takes one size only: what changes with the size cannot be seen."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 16, 6))
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.positions
        tokens = self.mix(self.norm(tokens))
        return self.head(tokens.transpose(1, 2).view(len(x), 6, 4, 4))


class FixedHead(nn.Module):
    """A classifier over all places: one size only, plain NCHW before it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 16, 3, padding=1), nn.Linear(16 * 64, 4)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).flatten(1))


@pytest.mark.parametrize(
    ("factory", "place", "axis", "side"),
    [
        (Positions, "stem", 1, 16),
        (Positions, "norm", -1, 16),
        (Positions, "mix", -1, 16),
        (FixedHead, "a", 1, 8),
        (FixedHead, "b", 1, 8),
    ],
)
def test_a_net_of_one_size_has_its_axes_from_its_layers(factory, place, axis, side):
    model = assert_like_hooks(factory, {place: axis}, [image(2, 3, side, side)], [image(3, 3, side, side, seed=2)])
    assert injected(model)[0].axes in {1: ("NCHW",), -1: ("NLC",)}[axis]


class Square(nn.Module):
    """As many channels as rows and columns: shapes alone say nothing."""

    def __init__(self):
        super().__init__()
        self.conv, self.last, self.mix, self.head = nn.Conv2d(3, 8, 3, padding=1), ToLast(), nn.Linear(8, 8), ToFirst()

    def forward(self, x):
        return self.head(self.mix(self.last(self.conv(x))))


@pytest.mark.parametrize(("place", "axis"), [("conv", 1), ("last", -1), ("mix", -1), ("head", 1)])
def test_a_map_with_as_many_channels_as_rows(place, axis):
    assert_like_hooks(Square, {place: axis}, [image(2, 3, 8, 8)], [image(1, 3, 8, 12)])


def assert_like_hooks(factory, places, inputs, other):
    """Injected at the places, the net equals the oracle with the axes of the places, at two sizes."""
    stock = build(factory)
    recipe = {"e_lambda": E_LAMBDA, "rules": [{"path": place, "after": "output"} for place in places]}
    model = inject(copy.deepcopy(stock), recipe, example_inputs=tuple(inputs))
    found = injected(model)
    assert {insertion.path: insertion.channel_dim for insertion in found} == places
    for args in (inputs, other):
        assert_attended(run(model, *args), stock, places, *args)
        with bypass(model):
            assert same_bits(run(model, *args), run(stock, *args))
    return model


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


# A network of one size: the layout comes from what the operations do, and an operation that is not known has none


class Moves(nn.Module):
    def __init__(self, move):
        super().__init__()
        self.move = move

    def forward(self, x):
        return self.move(x)


class OfOneSize(nn.Module):
    """The size is that of a table; `mv` moves six channels of 8 x 8 maps, and is attended."""

    def __init__(self, move):
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 6, 3, padding=1), nn.Parameter(torch.randn(1, 6, 8, 8))
        self.mv, self.weights = Moves(move), nn.Parameter(torch.randn(8))

    def forward(self, x):
        y = self.mv(self.conv(x) + self.table)
        return (y.flatten(1) ** 2).cumsum(1)


def weights(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def rows(x):
    return x.permute(0, 2, 3, 1)


def tokens(x):
    return x.flatten(2).mT


C_BY_C, L_BY_L, W_BY_W = weights(6, 6), weights(64, 64), weights(8, 8)
KNOWN = {
    "permute": (rows, -1),
    "mT": (lambda x: tokens(x).relu(), -1),
    "transpose": (lambda x: x.flatten(2).transpose(1, 2).relu(), -1),
    "swapaxes": (lambda x: x.swapaxes(1, 3).relu(), -1),
    "moveaxis": (lambda x: x.moveaxis(1, -1) * 2, -1),
    "linear over channels": (lambda x: F.linear(rows(x), C_BY_C), -1),
    "linear over positions": (lambda x: F.linear(x.flatten(2), L_BY_L), 1),
    "linear over width": (lambda x: F.linear(x, W_BY_W), 1),
    "norm over width": (lambda x: F.layer_norm(x, (8,)), 1),
    "norm over channels": (lambda x: F.layer_norm(rows(x), (6,)), -1),
    "attention": (lambda x: F.scaled_dot_product_attention(*[tokens(x)] * 3), -1),
    "constant before": (lambda x: torch.ones(1, 8, 8, 1, dtype=x.dtype) * rows(x), -1),
    "constant added": (lambda x: torch.zeros(1, 8, 8, 6, dtype=x.dtype) + rows(x), -1),
    "constant joined": (lambda x: torch.cat([torch.zeros(len(x), 1, 6, dtype=x.dtype), tokens(x)], 1), -1),
    "new_zeros joined": (lambda x: torch.cat([x.new_zeros(len(x), 1, 6), tokens(x)], 1), -1),
    "repeated": (lambda x: torch.cat([weights(1, 1, 6).repeat(len(x), 1, 1), tokens(x)], 1), -1),
    "roll": (lambda x: x.roll(1, 2), 1),
    "pad": (lambda x: F.pad(x, (1, 1)), 1),
    "flip": (lambda x: rows(x).flip(1), -1),
    "clamp": (lambda x: tokens(x).clamp(-1, 1), -1),
}
UNKNOWN = {
    "einsum": (lambda x: torch.einsum("nchw->nhwc", x), -1),
    "einsum with weights": (lambda x: torch.einsum("nchw,cd->nhwd", x, C_BY_C), -1),
    "tensordot": (lambda x: torch.tensordot(x, C_BY_C, ([1], [0])), -1),
    "permute_copy": (lambda x: torch.permute_copy(x, (0, 2, 3, 1)), -1),
    "rot90": (lambda x: torch.rot90(x, 1, (1, 3)), -1),
    "copy_": (lambda x: x.new_zeros(len(x), 8, 8, 6).copy_(rows(x)), -1),
    "as_strided": (lambda x: x.contiguous().as_strided((len(x), 8, 8, 6), (384, 8, 1, 64)), -1),
    "index_put": (lambda x: x.new_zeros(len(x), 8, 8, 6).index_put((torch.arange(len(x)),), rows(x)), -1),
    "where": (lambda x: torch.where(torch.ones(8, 8, 6).bool(), rows(x), torch.zeros(1, dtype=x.dtype)), -1),
    "stack": (lambda x: torch.stack(list(x.unbind(1)), -1), -1),
    "windows": (lambda x: rows(x).reshape(len(x), 2, 4, 2, 4, 6).transpose(2, 3).reshape(-1, 16, 6), -1),
    "gather": (lambda x: rows(x).gather(1, torch.zeros(len(x), 8, 8, 6, dtype=torch.int64)), -1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_axes_that_follow_from_the_operations(name):
    move, axis = KNOWN[name]
    assert_like_hooks(lambda: OfOneSize(move), {"mv": axis}, [image(2, 3, 8, 8)], [image(3, 3, 8, 8, seed=2)])


@pytest.mark.parametrize("name", UNKNOWN)
def test_axes_that_follow_from_nothing_known_are_right_or_skipped(name):
    move, axis = UNKNOWN[name]
    try:
        planned = plan(build(lambda: OfOneSize(move)), after("mv"), example_inputs=image(2, 3, 8, 8))
    except InjectError as error:
        message = str(error)
    else:
        assert planned.insertions[0].channel_dim == axis
        return
    assert "channels" in message or "first dimension" in message


class Attends(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.one, self.attn = nn.LayerNorm(dim), nn.MultiheadAttention(dim, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.one(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.mlp(x)


class Vit(nn.Module):
    """With a class token that is made in the way of the case."""

    def __init__(self, token):
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.randn(1, 1, 6))
        self.pos, self.token = nn.Parameter(torch.randn(1, 17, 6)), token
        self.drop, self.blocks = nn.Dropout(0.0), nn.ModuleList([Attends(6), Attends(6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.drop(torch.cat([self.token(self.cls, x), x], 1) + self.pos)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


TOKENS = {
    "expand": lambda cls, x: cls.expand(len(x), -1, -1),
    "repeat": lambda cls, x: cls.repeat(len(x), 1, 1),
    "expand_as": lambda cls, x: cls.expand_as(x[:, :1]),
    "zeros": lambda cls, x: torch.zeros(len(x), 1, 6, dtype=x.dtype),
    "new_ones": lambda cls, x: x.new_ones(len(x), 1, 6),
    "broadcast": lambda cls, x: torch.broadcast_to(cls, (len(x), 1, 6)),
    "mean": lambda cls, x: x.mean(1, keepdim=True),
    "product": lambda cls, x: cls * x.new_ones(len(x), 1, 1),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_transformer_with_a_class_token_is_attended_over_its_tokens(name):
    places = {"drop": -1, "blocks.0": -1, "blocks.1": -1}
    assert_like_hooks(lambda: Vit(TOKENS[name]), places, [image(2, 3, 16, 16)], [image(3, 3, 16, 16, seed=2)])


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


def test_frames_of_one_size_are_skipped_because_windows_look_the_same():
    with pytest.raises(InjectError, match="grows by 3 for one sample more, so it holds windows, groups or frames"):
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
    with pytest.raises(InjectError, match=r"SimAM at act was planned for \w+ with 6 channels"):
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


class Cached(nn.Module):
    """Fills a table in its first forward, by the operation that it also applies to its map."""

    def __init__(self, anew):
        super().__init__()
        self.conv, self.seed = nn.Conv2d(3, 6, 3, padding=1), nn.Parameter(torch.randn(1, 6, 1, 1))
        self.anew, self.table, self.size = anew, None, None

    def forward(self, x):
        if self.table is None or (self.anew and self.size != x.shape[2:]):
            self.table, self.size = F.relu(self.seed.expand(1, 6, *x.shape[2:])), x.shape[2:]
        return F.relu(self.conv(x) + self.table.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("anew", [False, True], ids=["once", "for each size"])
def test_a_cache_does_not_shift_the_experiments(anew):
    sites = survey(Cached(anew).eval(), example_inputs=torch.rand(2, 3, 16, 16)).site_by_path
    assert "does not depend on the batch" in sites["relu"].obstacle
    assert (sites["relu[2]"].axes, sites["relu[2]"].axes_measured) == ("NCHW", True)
