"""Fault B: attention runs along the axes that the values have, whatever classes are called (B1 to B4, by kind).

Each net names its attended module, and the channel axis of what that module returns is written by hand.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject import InjectError, inject, injected, plan
from simam_inject.api import survey
from tests.engine.axes import after, assert_like_hooks, rows
from tests.engine.blocks import build, run
from tests.engine.targets import image
from tests.oracle import assert_attended

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


def tokens(x):
    return x.flatten(2).mT


C_BY_C, L_BY_L, W_BY_W = weights(6, 6), weights(64, 64), weights(8, 8)
KNOWN = {
    "stacked maps": (lambda x: torch.stack([x, x + 1], 2), 1),
    "permute": (rows, -1),
    "mT": (lambda x: tokens(x).relu(), -1),
    "transpose": (lambda x: x.flatten(2).transpose(1, 2).relu(), -1),
    "swapaxes": (lambda x: x.swapaxes(1, 3).relu(), -1),
    "moveaxis": (lambda x: x.moveaxis(1, -1) * 2, -1),
    "linear over channels": (lambda x: F.linear(rows(x), C_BY_C), -1),
    "linear over positions": (lambda x: F.linear(x.flatten(2), L_BY_L), 1),
    "linear to one number": (lambda x: F.linear(tokens(x).unflatten(2, (3, 2)), weights(2)).unflatten(1, (8, 8)), -1),
    "positions mixed": (lambda x: L_BY_L.softmax(1) @ tokens(x), -1),
    "product with a vector": (lambda x: (tokens(x).unflatten(2, (3, 2)) @ x[0, 0, 0, :2]).unflatten(1, (8, 8)), -1),
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
    "rot90 of as many channels as rows": (lambda x: torch.rot90(x.repeat(1, 2, 1, 1)[:, :8], 1, (1, 3)), -1),
    "glu": (lambda x: F.layer_norm(F.glu(x, 1), (8,)), 1),
    "largest of two": (lambda x: torch.stack([x, x + 1], 2).amax(2), 1),
    "mean of two, norm over width": (lambda x: F.layer_norm(torch.stack([x, x + 1], 1).mean(1), (8,)), 1),
    "sum of two": (lambda x: torch.stack([tokens(x), tokens(x) ** 2]).sum(dim=0), -1),
}
UNKNOWN = {
    "unfold to as many positions as channels": (lambda x: F.unfold(x.repeat(1, 11, 1, 1)[:, :64], 3, padding=1), 1),
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
    "norm by position": (lambda x: F.batch_norm(tokens(x), None, None, training=True), -1),
    "pooled channels": (lambda x: F.max_pool1d(tokens(x), 2), -1),
    "mean over channels": (lambda x: x.repeat(1, 2, 1, 1)[:, :8, :, :5].mean(1), None),
    "positions read as channels": (lambda x: x.reshape(len(x), 64, 6), None),
    "one channel": (lambda x: rows(x.mean(1, keepdim=True)), -1),
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


class Modulated(nn.Module):
    """A convolution whose weights depend on the sample: grouped, over the channels of all samples."""

    def __init__(self):
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(6, 6, 3, 3)), nn.Linear(8, 6)

    def forward(self, x, z):
        n, c, *size = x.shape
        weight = self.weight * self.style(z).view(n, 1, c, 1, 1)
        x = F.conv2d(x.reshape(1, n * c, *size), weight.view(n * 6, c, 3, 3), padding=1, groups=n)
        return x.view(n, 6, *size)


class OfStyles(nn.Module):
    """A generator: no argument has a size, and the latent vectors have the batch."""

    def __init__(self):
        super().__init__()
        self.start, self.one, self.two = nn.Parameter(torch.randn(1, 6, 4, 4)), Modulated(), Modulated()

    def forward(self, z):
        x = F.relu(self.one(self.start.repeat(len(z), 1, 1, 1), z))
        return self.two(F.interpolate(x, scale_factor=2), z)


def test_the_batch_of_latent_vectors_is_measured():
    assert_like_hooks(OfStyles, {"one": 1}, [torch.randn(2, 8).double()], [torch.randn(3, 8).double()])
    with pytest.raises(InjectError, match=r"its batch is in dimension 1, not the first.*\(1, 12, 4, 4\)"):
        plan(build(OfStyles), after("one.conv2d"), example_inputs=torch.randn(2, 8).double())


class Scattered(nn.Module):
    """Scatters points into maps, whose number is given."""

    def __init__(self):
        super().__init__()
        self.points, self.part = nn.Linear(4, 6), nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())

    def forward(self, points, places, count):
        maps = points.new_zeros(count, 6, 64)
        maps[places % count, :, places] = self.points(points)
        return self.part(maps.view(count, 6, 8, 8))


def test_a_batch_that_is_given_as_a_number_cannot_be_measured():
    example, net = (torch.randn(9, 4).double(), torch.arange(9), 2), build(Scattered)
    with pytest.raises(InjectError, match=r"its shape stays .*; .* inject\(model\.part, recipe, example_inputs=map\)"):
        plan(net, after("part.0"), example_inputs=example)
    inject(net.part, after("0"), example_inputs=image(2, 6, 8, 8))
    assert_attended(run(net, *example), build(Scattered), {"part.0": 1}, *example)


class OfTwoSamples(OfOneSize):
    """The batch is as fixed as the size, so neither can be measured."""

    def forward(self, x):
        y = (self.conv(x) + self.table).reshape(2, 6, 64)
        return self.mv(y.permute(2, 0, 1)).flatten()


def test_without_any_measurement_the_first_dimension_has_to_be_the_batch():
    with pytest.raises(
        InjectError, match=r"its first dimension does not hold the 2 samples of the example: .*64, 2, 6"
    ):
        plan(build(lambda: OfTwoSamples(torch.relu)), after("mv"), example_inputs=image(2, 3, 8, 8))
    planned = plan(build(lambda: OfTwoSamples(torch.relu)), after("conv"), example_inputs=image(2, 3, 8, 8))
    assert planned.insertions[0].channel_dim == 1


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
    assert "does not grow with the first dimension of the inputs" in sites["relu"].obstacle
    assert (sites["relu[2]"].axes, sites["relu[2]"].axes_measured) == ("NCHW", True)


class Patches(nn.Module):
    """Tokens of an image that a space-to-depth makes smaller, and another map of half their size."""

    def __init__(self):
        super().__init__()
        self.conv, self.low, self.tokens = nn.Conv2d(48, 8, 3, padding=1), nn.Conv2d(8, 8, 2, 2), nn.Linear(8, 8)

    def forward(self, x):
        x = self.conv(F.pixel_unshuffle(x, 4))
        return self.tokens(x.flatten(2).mT), self.tokens(self.low(x).flatten(2).mT), self.low(x)


@pytest.mark.parametrize("size", [(32, 32), (64, 160)])
def test_reduction_is_that_of_the_image_for_tokens_and_after_a_space_to_depth(size):
    sites = survey(Patches().eval(), example_inputs=torch.rand(2, 3, *size)).site_by_path
    assert [sites[path].reduction for path in ("conv", "low", "flatten", "flatten[2]")] == [4, 8, 4, 8]
    plain = survey(nn.Conv2d(3, 8, 3, 2, 1), example_inputs=torch.rand(2, 3, *size)).site_by_path
    assert plain[""].reduction == 2


class Transposed(nn.Module):
    def __init__(self, conv, dims):
        super().__init__()
        self.conv, self.dims = conv, dims

    def forward(self, x):
        return self.conv(x.permute(self.dims)).relu()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Transposed(nn.Conv1d(300, 8, 3, padding=1), (0, 2, 1)), (2, 50, 300)),
        (Transposed(nn.Conv2d(48, 8, 3, padding=1), (0, 3, 1, 2)), (2, 12, 12, 48)),
    ],
)
def test_a_permutation_is_no_space_to_depth(network, shape):
    sites = survey(network, example_inputs=torch.rand(shape)).site_by_path
    assert sites["conv"].reduction == 1
