"""A branch on the class or the rank of an argument holds for arguments of that class and rank only."""

import copy

import pytest
import torch

from simam_inject import InjectError, inject, injected, simam
from tests.engine.blocks import Block
from tests.engine.oracle import hooked, same_bits

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))
ONE = X[0]


class AddsParts(Block):
    def forward(self, x):
        if isinstance(x, (list, tuple)):
            x = (x[0] + x[1])[None]
        return self.b(self.a(x))


class AddsBatch(Block):
    def forward(self, x):
        if x.dim() == 3:
            x = x.unsqueeze(0)
        return self.b(self.a(x))


class CountsSizes(Block):
    def forward(self, x):
        return self.b(self.a(x if len(x.shape) == 4 else x[None]))


class CountsSizesOfDouble(Block):
    def forward(self, x):
        y = x * 2
        return self.b(self.a(y if y.ndim == 4 else y[None]))


class TakesTensor(Block):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = x * 2
        return self.b(self.a(x["x"] if isinstance(x, dict) else x))


class TakesNested(Block):
    def forward(self, x):
        parts = x["parts"]
        return self.b(self.a(parts[0] if isinstance(parts, list) else parts[1]))


class TakesEither(Block):
    def forward(self, x):
        y = x["x"] if torch.is_tensor(x["x"]) else x["x"][0]
        return self.b(self.a(y))


@pytest.mark.parametrize(
    ("block", "example", "other"),
    [
        (AddsParts, [ONE, ONE], X),
        (AddsParts, X, [ONE, ONE]),
        (AddsParts, (ONE, ONE), [ONE, ONE]),
        (AddsBatch, X, ONE),
        (CountsSizes, X, ONE),
        (CountsSizesOfDouble, X, ONE),
        (TakesTensor, X, {"x": X}),
        (TakesTensor, {"x": X}, X),
        (TakesNested, {"parts": [X, X * 2]}, {"parts": (X, X * 2)}),
        (TakesEither, {"x": X}, {"x": [X]}),
    ],
)
def test_another_class_or_rank_of_an_argument_is_loud(block, example, other):
    torch.manual_seed(4)
    plain = block()
    ours = inject(copy.deepcopy(plain), f"after {block.__name__}.a", example_inputs=(example,))
    assert injected(ours)[0].means == "forward"
    with hooked(plain, ["a"], 1e-4, simam):
        assert same_bits(plain(example), ours(example))
    with pytest.raises(InjectError, match="argument x"):
        ours(other)


class HasLoss(Block):
    """As ultralytics has it: a batch goes to `loss`, which comes back with its images."""

    def forward(self, x, scale=1.0):
        """The output, or for a batch its loss."""
        if isinstance(x, dict):
            return self.loss(x, scale=scale)
        return self.predict(x)

    def predict(self, x):
        return self.b(self.a(x))

    def loss(self, batch, scale):
        shift = 1 if getattr(self.a, "bias", None) is not None else 0
        return self.forward(batch["x"]).sum() * scale + shift


class HandsOn(HasLoss):
    def forward(self, x, **kwargs):
        if isinstance(x, dict):
            return self.loss(x, **kwargs)
        return self.predict(x, **kwargs)

    def predict(self, x, augment=False):
        return self.b(self.a(x + 1 if augment else x))


class LosesSites(HasLoss):
    def loss(self, batch, scale):
        return self.predict(batch["x"]).sum() * scale


class LosesSitesByAlias(HasLoss):
    def loss(self, batch, scale):
        run = self.a
        return run(batch["x"]).sum() * scale


class LosesSitesByName(HasLoss):
    def loss(self, batch, scale):
        return getattr(self, "a")(batch["x"]).sum() * scale  # noqa: B009 - the name in a text is the point


def test_a_call_that_comes_back_through_forward_is_attended():
    torch.manual_seed(4)
    plain = HasLoss()
    ours = inject(copy.deepcopy(plain), "after hasloss.a", example_inputs=X)
    expected = plain({"x": X}, 2.0)
    with hooked(plain, ["a"], 1e-4, simam):
        attended = plain({"x": X}, 2.0)
    assert same_bits(ours({"x": X}, scale=2.0), attended)
    assert not torch.equal(attended, expected)


@pytest.mark.parametrize("block", [LosesSites, LosesSitesByAlias, LosesSitesByName])
def test_a_call_that_would_pass_the_sites_by_is_loud(block):
    ours = inject(block(), f"after {block.__name__}.a", example_inputs=X)
    with pytest.raises(InjectError, match="argument x"):
        ours({"x": X})


def test_a_keyword_that_is_the_default_of_the_method_it_goes_to_changes_nothing():
    torch.manual_seed(4)
    plain = HandsOn()
    ours = inject(copy.deepcopy(plain), "after handson.a", example_inputs=X)
    with hooked(plain, ["a"], 1e-4, simam):
        assert same_bits(plain(X), ours(X, augment=False))
    for other in ({"augment": True}, {"profile": False}):
        with pytest.raises(InjectError, match="argument kwargs"):
            ours(X, **other)
