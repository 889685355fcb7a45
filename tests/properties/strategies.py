"""Random networks out of `blocks`, and random recipes: small frozen data that hypothesis can shrink and print."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from tests.properties.blocks import BLOCKS, CONV, MAX_POOL, NORM

CHANNELS = 8
SIZE = {1: 32, 2: 12, 3: 8}


@dataclass(frozen=True)
class Design:
    """A network as data."""

    dims: int
    blocks: tuple[str, ...]
    pooled: bool
    """Half the size after the first block."""
    tied: bool
    """The first block is used again at the end, by its own name."""
    returns: str
    """`logits`, `map`, `tuple` or `dict`."""

    def build(self):
        torch.manual_seed(0)
        return Net(self).eval()

    def inputs(self, *, second=False):
        """A batch of two; at the second size no dimension is as before."""
        size = [SIZE[self.dims] + (4 + 2 * axis if second else 0) for axis in range(self.dims)]
        return torch.rand(3 if second else 2, 3, *size, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, design):
        super().__init__()
        dims = design.dims
        self.stem = CONV[dims](3, CHANNELS, 3, padding=1, bias=False)
        self.norm = NORM[dims](CHANNELS)
        self.blocks = nn.ModuleList(BLOCKS[name](dims, CHANNELS) for name in design.blocks)
        self.pool = MAX_POOL[dims](2) if design.pooled else nn.Identity()
        self.tail = self.blocks[0] if design.tied else None
        self.head = nn.Linear(CHANNELS, 5)
        self.returns = design.returns

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 0:
                x = self.pool(x)
            features.append(x)
        if self.tail is not None:
            x = self.tail(x)
        if self.returns == "map":
            return x
        logits = self.head(x.flatten(2).mean(-1))
        if self.returns == "tuple":
            return logits, features
        return {"out": logits, "last": features[-1]} if self.returns == "dict" else logits


designs = st.builds(
    Design,
    dims=st.sampled_from((2, 2, 2, 1, 3)),
    blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4).map(tuple),
    pooled=st.booleans(),
    tied=st.booleans(),
    returns=st.sampled_from(("logits", "map", "tuple", "dict")),
)

_places = st.one_of(
    st.sampled_from(
        (
            {"after": "output"},
            {"before": "residual"},
            {"after": {"op": "conv"}},
            {"after": {"op": "norm"}},
            {"after": {"op": "act"}},
            {"before": {"op": "norm"}},
            {"before": {"op": "act"}},
            {"after": {"op": "cat"}},
            {"after": {"op": "add"}},
            {"after": {"op": ["mul", "chunk", "interpolate"]}},
            {"after": "conv2"},
            {"after": "{conv,conv1,cv1,dw}"},
            {"before": "{bn2,norm,act}"},
            {"after": "relu[*]"},
        )
    )
)
_selections = st.sampled_from(
    (
        {"path": "*"},
        {"path": "blocks.*"},
        {"block": "*"},
        {"block": ["Basic", "Conv*"]},
        {"block": "Net"},
        {"block": "*e*", "exclude": "blocks.0*"},
    )
)
_conditions = st.sampled_from(
    ({}, {}, {}, {"where": {"channels": ">=8"}}, {"pick": {"last": 1}}, {"pick": {"every": 2, "per": "parent"}})
)
_patterns = st.sampled_from(
    (
        {"pattern": "conv > norm"},
        {"pattern": "conv > norm > act", "after": "norm"},
        {"pattern": "conv > act"},
        {"pattern": "*norm > relu", "before": "relu"},
        {"pattern": "conv > batch_norm", "before": "batch_norm"},
    )
)
_rules = st.one_of(
    st.tuples(_selections, _places, _conditions).map(lambda parts: {**parts[0], **parts[1], **parts[2]}), _patterns
)


@st.composite
def recipes(draw):
    """One to three rules, none of which needs to find anything, each with a lambda of its own."""
    rules = draw(st.lists(_rules, min_size=1, max_size=3))
    lambdas = draw(st.lists(st.sampled_from((1e-4, 0.1, 1.0)), min_size=len(rules), max_size=len(rules)))
    return {
        "version": 1,
        "name": "random",
        "rules": [
            {**rule, "e_lambda": e_lambda, "optional": True} for rule, e_lambda in zip(rules, lambdas, strict=True)
        ],
    }
