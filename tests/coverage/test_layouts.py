"""Where the channels are, through reshapes, permutations and blocks that check what they are given."""

import pytest
import torch
from torch import nn

from simam_inject import plan
from simam_inject.api import survey


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        n, c, h, w = self.conv(x).shape
        return self.conv(x).view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class LastAndBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        halves = self.norm(self.conv(x).permute(0, 2, 3, 1)).chunk(2, -1)
        last = halves[0] * halves[1]
        return last.movedim(-1, 1)


def test_a_channel_shuffle_gives_channels_second():
    planned = plan(Shuffle(), {"rules": [{"block": "Shuffle", "after": "output"}]})
    assert [(i.path, i.channel_dim) for i in planned.insertions] == [("", 1)]


def test_channels_last_is_seen_through_chunk_and_back():
    sites = survey(LastAndBack(), example_inputs=torch.rand(1, 3, 9, 9)).site_by_path
    assert {path: sites[path].channel_dim for path in ("conv", "norm", "mul", "movedim")} == {
        "conv": 1,
        "norm": -1,
        "mul": -1,
        "movedim": 1,
    }


class TokenBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class OpaqueTokens(nn.Module):
    """Decides on a shape, as MobileViT's blocks do: what its child is given follows from the forward."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(TokenBlock(), TokenBlock())

    def forward(self, x):
        x = self.conv(x)
        if x.shape[-1] % 2:
            x = x[..., :-1]
        return self.blocks(x.flatten(2).transpose(1, 2))


def test_tokens_of_an_opaque_block_have_channels_last():
    planned = plan(OpaqueTokens(), {"rules": [{"block": "TokenBlock", "after": "output"}]})
    assert [(i.path, i.channel_dim) for i in planned.insertions] == [("blocks.0", -1), ("blocks.1", -1)]


class Decoder(nn.Module):
    """A layer of RT-DETR's decoder: attention over tokens that an opaque block makes, and a norm behind the add."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        moved = x.transpose(0, 1)
        x = x + self.dropout(self.attention(moved, moved, moved)[0].transpose(0, 1))
        return self.norm(x)


class OpaqueDecoder(OpaqueTokens):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Decoder(), Decoder())


def test_what_multihead_attention_returns_has_channels_last():
    planned = plan(OpaqueDecoder(), {"rules": [{"block": "Decoder", "before": "residual"}]})
    assert {i.path: i.channel_dim for i in planned.insertions} == {"blocks.0.dropout": -1, "blocks.1.dropout": -1}


class Adding(nn.Module):
    """Nothing reads its input as tokens but a norm behind an add."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + x.relu())


class OpaqueAdding(OpaqueTokens):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Adding())


def test_an_input_is_read_as_what_is_computed_from_it():
    planned = plan(OpaqueAdding(), {"rules": [{"path": "blocks.0", "after": {"op": "relu"}}]})
    assert [i.channel_dim for i in planned.insertions] == [-1]


class PatchEmbedding(nn.Module):
    """Checks a shape, so that it is opaque, and returns tokens of what its convolution wrote."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Conv2d(3, 8, 2, 2)
        self.last = nn.Identity()

    def forward(self, x):
        if x.shape[-1] % 2:
            raise ValueError("odd width")
        return self.last(self.projection(x).flatten(2).transpose(1, 2))


class OpaqueStem(PatchEmbedding):
    def __init__(self):
        super().__init__()
        self.projection = PatchEmbedding()

    def forward(self, x):
        if x.shape[-1] % 2:
            raise ValueError("odd width")
        return self.last(self.projection(x))


@pytest.mark.parametrize(
    ("network", "path"),
    [(PatchEmbedding, "0"), (OpaqueStem, "0"), (OpaqueStem, "0.projection"), (OpaqueStem, "0.last")],
)
def test_what_opaque_blocks_return_is_known_from_what_was_written_last_in_them(network, path):
    model = nn.Sequential(network(), nn.Identity())
    planned = plan(model, {"rules": [{"path": path, "after": "output"}]})
    assert [(i.path, i.channel_dim) for i in planned.insertions] == [(path, -1)]
