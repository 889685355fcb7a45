"""What enlarges a map is an upsampling only if it enlarges what is there: no pooled map, and no tokens.

Each net has neighbours that are built alike and must stay.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn
from torchvision.ops import DeformConv2d

from tests.nets.parts import c1, c3
from tests.nets.test_structures import Darn, check, double


class Bins(nn.Module):
    """A pyramid pooling module: maps pooled to few pixels, enlarged, and joined with their source."""

    def __init__(self, sizes):
        super().__init__()
        self.bins = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(size), c1(8, 4), nn.BatchNorm2d(4), nn.ReLU()) for size in sizes]
        )

    def forward(self, x):
        return torch.cat([x, *(F.interpolate(one(x), x.shape[2:]) for one in self.bins)], 1)


class Pyramid(nn.Module):
    """Pooled and enlarged in the forward of the network itself, and read by a block."""

    def __init__(self):
        super().__init__()
        self.stem, self.narrow, self.mix, self.head = c3(3, 8), c1(8, 4), double(12, 8), c1(8, 2)

    def forward(self, x):
        x = self.stem(x)
        pooled = F.relu(self.narrow(F.adaptive_avg_pool2d(x, 4)))
        return self.head(self.mix(torch.cat([x, F.interpolate(pooled, x.shape[2:])], 1)))


class Strided(nn.Module):
    """A pyramid pooling module whose kernels have a fixed size, as that of PSMNet."""

    def __init__(self):
        super().__init__()
        self.bins = nn.ModuleList([nn.Sequential(nn.AvgPool2d(size), c1(8, 4), nn.ReLU()) for size in (16, 8)])

    def forward(self, x):
        return torch.cat([x, *(F.interpolate(one(x), x.shape[2:]) for one in self.bins)], 1)


class Fuse(nn.Module):
    """A decoder block that is given its maps as two arguments, in a list, or in a dict."""

    def __init__(self, form):
        super().__init__()
        self.form, self.mix = form, double(16, 8)

    def forward(self, *given):
        if self.form == "list":
            given = given[0]
        elif self.form == "dict":
            given = given[0]["high"], given[0]["low"]
        elif self.form == "unpacked":
            a, b = given[0]
            given = (b, a)
        return self.mix(torch.cat(given, 1))


class Fusing(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.a, self.b, self.up = form, c3(3, 8), c3(8, 8, 2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.fuse, self.after, self.head = Fuse(form), Darn(), c3(8, 3)

    def forward(self, x):
        a = self.a(x)
        maps = [a, self.up(self.b(a))]
        given = maps if self.form == "two" else [dict(zip(("high", "low"), maps, strict=True))]
        given = [maps] if self.form in ("list", "unpacked") else given
        return self.head(self.after(self.fuse(*given)))


class Levels(nn.Module):
    """Three levels are added at once, as in XFeat; `form` says how."""

    def __init__(self, form):
        super().__init__()
        self.form, self.stem, self.mix, self.head = form, c3(3, 8), double(8, 8), c1(8, 2)
        self.levels = nn.ModuleList([nn.Sequential(nn.MaxPool2d(2), Darn()) for _ in range(3)])
        self.side = nn.ModuleList([c1(8, 8) for _ in range(3)])
        self.twice, self.four_times = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=4)

    def forward(self, x):
        x = self.stem(x)
        maps = [x := level(x) for level in self.levels]
        if self.form != "bare":
            maps = [side(one) for side, one in zip(self.side, maps, strict=True)]
        fine, middle, coarse = maps[0], self.twice(maps[1]), self.four_times(maps[2])
        return self.head(self.mix(fine + (middle + coarse) if self.form == "from behind" else fine + middle + coarse))


class Enlarged(nn.Module):
    """Super-resolution in two steps beside one, of the same image."""

    def __init__(self):
        super().__init__()
        self.into, self.once, self.again, self.out = c3(3, 8), c3(8, 32), c3(8, 32), c3(8, 3)

    def forward(self, x):
        y = F.relu(F.pixel_shuffle(self.once(F.relu(self.into(x))), 2))
        y = F.relu(F.pixel_shuffle(self.again(y), 2))
        return self.out(y) + F.interpolate(x, scale_factor=4)


class Tinted(nn.Module):
    """Enlarges a map, in colours that a vector gives."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.part, self.colour = scale, c3(8, 8), nn.Linear(4, 8)

    def forward(self, x, vector):
        return F.relu(self.part(F.interpolate(x, scale_factor=self.scale) * self.colour(vector)[:, :, None, None]))


class Painted(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.same, self.skip = Tinted(2), Tinted(1), c1(8, 8)

    def forward(self, x, vector):
        return self.skip(F.interpolate(x, scale_factor=2)) + self.same(self.up(x, vector), vector)


class Painting(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.vector = c3(3, 8, 2), Painted(), Painted(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        vector = self.vector(x.mean((2, 3)))
        return self.two(self.one(x, vector), vector)


class Align(nn.Module):
    """A coarse map is sampled where it fits the fine one, as in FaPN."""

    def __init__(self):
        super().__init__()
        self.side, self.where, self.sample = c1(8, 8), c3(16, 18), DeformConv2d(8, 8, 3, padding=1)

    def forward(self, fine, coarse):
        fine, coarse = self.side(fine), F.interpolate(coarse, scale_factor=2)
        return F.relu(self.sample(coarse, self.where(torch.cat([fine, coarse], 1)))) + fine


class Aligned(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = c3(3, 8), nn.Sequential(c3(8, 8, 2), Darn()), nn.Sequential(c3(8, 8, 2), Darn())
        self.two, self.one, self.head = Align(), Align(), c1(8, 2)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return self.head(self.one(a, self.two(b, self.c(b))))


class Conv2d(nn.Module):
    """A convolution that may enlarge its input first, as in StyleGAN and EDM."""

    def __init__(self, before, after, scale=1):
        super().__init__()
        self.scale, self.weight = scale, nn.Parameter(torch.randn(after, before, 3, 3) / before)

    def forward(self, x):
        return F.conv2d(F.interpolate(x, scale_factor=self.scale) if self.scale > 1 else x, self.weight, padding=1)


class Styled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Sequential(Conv2d(3, 8), nn.ReLU(), Conv2d(8, 8)), c3(8, 8, 2)
        self.up = nn.Sequential(Conv2d(8, 8, 2), nn.ReLU(), Conv2d(8, 8))
        self.mix, self.head = nn.Sequential(Conv2d(16, 8), nn.ReLU(), Conv2d(8, 8)), Conv2d(8, 3)

    def forward(self, x):
        a = self.a(x)
        return self.head(self.mix(torch.cat([self.up(self.b(a)), a], 1)))


class Lifted(nn.Module):
    """What is made of pooled and other maps is enlarged, and joined with an earlier map."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bins, self.narrow = c3(3, 8), c3(8, 8, 2), Bins((2, 4)), c3(16, 8)
        self.mix, self.head = double(16, 8), c1(8, 2)

    def forward(self, x):
        a = self.a(x)
        x = F.interpolate(self.narrow(self.bins(self.b(a))), a.shape[2:])
        return self.head(self.mix(torch.cat([x, a], 1)))


class Halving(nn.Module):
    """A U-Net whose pooling is adaptive."""

    def __init__(self, pool):
        super().__init__()
        self.a, self.b, self.pool = double(3, 8), c3(8, 8), pool
        self.mix, self.head = double(16, 8), c1(8, 2)

    def forward(self, x):
        a = self.a(x)
        low = F.relu(self.b(self.pool(a, (a.shape[2] // 2, a.shape[3] // 2))))
        return self.head(self.mix(torch.cat([F.interpolate(low, a.shape[2:]), a], 1)))


class Finer(nn.Module):
    """It makes a finer map of the tokens of a coarse one."""

    def forward(self, tokens, size):
        return F.interpolate(tokens.transpose(1, 2).unflatten(2, size), scale_factor=2)


class Patches(nn.Module):
    """A decoder that joins the map of tokens with an earlier one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.linear, self.finer = c3(3, 8), c3(8, 8, 2), nn.Linear(8, 8), Finer()
        self.mix, self.head = double(16, 8), c1(8, 2)

    def forward(self, x):
        a = self.a(x)
        low = self.b(a)
        fine = self.finer(self.linear(low.flatten(2).transpose(1, 2)), low.shape[2:])
        return self.head(self.mix(torch.cat([fine, a], 1)))


class ToMap(nn.Module):
    def forward(self, tokens, size):
        return tokens.transpose(1, 2).unflatten(2, size)


class Tokens(nn.Module):
    """Super-resolution of tokens: in their last dimension are channels, fewer than there are positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.to_map = c3(3, 8), nn.Linear(8, 8), ToMap()
        self.after, self.before, self.head = c3(8, 8), double(8, 8), c3(8, 3)

    def forward(self, x):
        x = self.stem(x)
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        x = self.after(self.to_map(tokens, x.shape[2:])) + x
        return self.head(self.before(x))


@pytest.mark.parametrize(
    ("factory", "recipe", "places"),
    [
        (lambda: nn.Sequential(c3(3, 8), Darn(), Darn(), Bins((1, 2, 4)), c3(20, 8), c1(8, 2)), "unet", ""),
        (lambda: nn.Sequential(c3(3, 8), Darn(), Darn(), Bins((2,)), double(12, 8), c1(8, 2)), "unet", ""),
        (Pyramid, "unet", ""),
        (lambda: nn.Sequential(c3(3, 8), Darn(), Darn(), Strided(), double(16, 8), c1(8, 2)), "unet", ""),
        *[(lambda form=form: Fusing(form), "unet", "fuse") for form in ("two", "list", "unpacked", "dict")],
        *[(lambda form=form: Levels(form), "unet", "mix") for form in ("bare", "sides", "from behind")],
        *[
            (lambda form=form: Levels(form), "residual", "levels.{0,1,2}.1.second")
            for form in ("bare", "sides", "from behind")
        ],
        (Enlarged, "residual", "out"),
        (Painting, "residual", "{one,two}.same"),
        (Aligned, "unet", "two one"),
        (Styled, "unet", "mix"),
        (Lifted, "unet", "mix"),
        (lambda: Halving(F.adaptive_avg_pool2d), "unet", "mix"),
        (lambda: Halving(F.adaptive_max_pool2d), "unet", "mix"),
        (Patches, "unet", "mix"),
        (Tokens, "unet", ""),
        (Tokens, "residual", "after"),
    ],
)
def test_sites(factory, recipe, places):
    check(factory, recipe, places)
